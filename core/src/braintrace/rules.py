# SPDX-License-Identifier: Apache-2.0
"""The former name of :mod:`braintrace.algorithms`; it stays for one release."""

import warnings

from .algorithms import *  # noqa: F403
from .algorithms import __all__ as __all__

warnings.warn(
    "braintrace.rules is called braintrace.algorithms now", DeprecationWarning, stacklevel=2
)
