# SPDX-License-Identifier: Apache-2.0
"""The former name of :mod:`braintrace.algorithms`; it stays for one release."""

from .algorithms import *  # noqa: F403
from .algorithms import __all__ as __all__
from .base import versions

versions.warn("braintrace.rules is called braintrace.algorithms now", DeprecationWarning)
