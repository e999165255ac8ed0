# SPDX-License-Identifier: Apache-2.0
"""What every floor stands on: errors, paths, records of findings, units, and the one file that
knows which JAX is installed.
"""
