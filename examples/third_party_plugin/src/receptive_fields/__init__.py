# SPDX-License-Identifier: Apache-2.0
"""Receptive fields and dendrites for braintrace.

``receptive_fields`` and ``dendrites`` are also ``braintrace.receptive_fields`` and
``braintrace.dendrites``.
"""

from __future__ import annotations

from ._ops import dendrites, receptive_fields

__version__ = "0.1.0"
__all__ = ["dendrites", "receptive_fields"]
