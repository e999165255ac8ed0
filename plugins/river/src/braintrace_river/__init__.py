# SPDX-License-Identifier: Apache-2.0
"""Recurrent networks that learn online, as estimators of river."""

from __future__ import annotations

from ._estimators import RecurrentClassifier, RecurrentRegressor
from ._networks import GRUNetwork

__version__ = "0.1.0"
__all__ = ["GRUNetwork", "RecurrentClassifier", "RecurrentRegressor"]
