# SPDX-License-Identifier: Apache-2.0
"""What of a learner is saved, and when a saved one may take its place."""
