# SPDX-License-Identifier: Apache-2.0
"""Which hidden states have uniform linear dynamics, and what drives them."""
