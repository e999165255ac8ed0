# SPDX-License-Identifier: Apache-2.0
"""Every primitive passes the conformance kit of braintrace, on the plugin's own cases."""

from receptive_fields._plugin import plugin

from braintrace.testing import parametrize_with_checks


@parametrize_with_checks(plugin)
def test_conformance(check):
    check()
