# SPDX-License-Identifier: Apache-2.0
"""One step of a compiled model and its Jacobians x, f, D; from parameters to operands, and
cotangents back.
"""
