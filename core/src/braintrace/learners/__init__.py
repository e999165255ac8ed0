# SPDX-License-Identifier: Apache-2.0
"""A model with traces: the only object that changes. Most are nothing but a configuration of an
algorithm.
"""
