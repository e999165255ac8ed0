# SPDX-License-Identifier: Apache-2.0
"""Which position of a result depends on which position of an operand: axes, elements, alignment."""
