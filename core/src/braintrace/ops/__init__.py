# SPDX-License-Identifier: Apache-2.0
"""ETP operations: what a primitive is (spec), how it is registered, and the trace that its rules,
or derived ones, give it.
"""
