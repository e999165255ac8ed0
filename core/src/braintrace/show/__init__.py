# SPDX-License-Identifier: Apache-2.0
"""A compiled graph to look at. It is given plain facts and knows nothing of how they were found."""

from __future__ import annotations
