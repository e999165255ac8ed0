# SPDX-License-Identifier: Apache-2.0
"""What is read from the metadata of distributions, the broken ones passed over."""

from __future__ import annotations

import pytest

from braintrace.plugins import metadata
from tests.sites import record_of


def test_metadata_that_cannot_be_read_hides_nobody_else(site, host_of, plugin_source):
    site.add("good-beside", "good_beside", plugin_source("beside", "beside_p"), family="beside")
    bad = site.folder / "bad-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[braintrace.ops]\nno equals sign\n")
    (site.folder / "nameless-1.0.dist-info").mkdir()
    assert record_of(host_of(site), "beside").state == "discovered"


def test_bounds_on_core_honour_markers(site, host_of, plugin_source):
    text = plugin_source("marked", "marked_p")
    requires = 'braintrace-core>=9 ; python_version < "3"'
    host = host_of(site.add("marked", "marked_module", text, family="marked", requires=requires))
    assert record_of(host, "marked").state == "discovered"


def test_plain_bounds_are_read_as_the_parser_reads_them():
    bounds = (">=0.1", "<0.2", ">=0.1.0, <0.2", "<0.1.0.0", "<0.10", ">=1.0", ">=0.1,<0.2")
    for version in ("0", "0.1", "0.1.0", "0.1.1", "0.2.0.0", "0.10.1", "1"):
        for text in bounds:
            ours = [f"braintrace-core{text}"]
            parsed = metadata._parsed_bounds(ours, version)
            assert metadata._plain_bounds(ours, version) == parsed


@pytest.mark.parametrize("bound", ["==0.1.*", "[extra]>=0.1", ">=0.1rc1", ">=0.1; extra == 'a'"])
def test_other_bounds_are_left_to_the_parser(bound):
    assert metadata._plain_bounds([f"braintrace-core{bound}"], "0.1.0") is None
