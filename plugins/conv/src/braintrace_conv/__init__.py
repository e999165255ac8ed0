# SPDX-License-Identifier: Apache-2.0
"""Convolutions in one to three dimensions, and the layers built on them, for ``braintrace``.

``conv`` is also ``braintrace.conv``; the layers of :mod:`braintrace_conv.nn` are also in
``braintrace.nn``.
"""

from __future__ import annotations

from ._ops import conv

__version__ = "0.1.0"
__all__ = ["conv"]
