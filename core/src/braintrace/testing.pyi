# SPDX-License-Identifier: Apache-2.0
# The package braintrace_testing, whose modules have this name too.

from braintrace_testing import *  # noqa: F403
