# SPDX-License-Identifier: Apache-2.0
"""What is read from the metadata of distributions, the broken ones passed over."""

from __future__ import annotations

import pytest

from braintrace.plugins import metadata
from braintrace.plugins.metadata import Candidate
from tests.sites import record_of


def test_metadata_that_cannot_be_read_hides_nobody_else(site, host_of, plugin_source):
    site.add("good-beside", "good_beside", plugin_source("beside", "beside_p"), family="beside")
    bad = site.folder / "bad-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[braintrace.ops]\nno equals sign\n")
    stranger = site.folder / "stranger-1.0.dist-info"
    stranger.mkdir()
    (stranger / "entry_points.txt").write_bytes(b"[console_scripts]\n\xff")
    nameless = site.folder / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "entry_points.txt").write_text("[braintrace.nn]\nLayer = some:Layer\n")
    (site.folder / "empty-1.0.dist-info").mkdir()
    (site.folder / "braintrace_torn-2.0.dist-info").mkdir()
    torn = site.folder / "braintrace_torn-2.0.dist-info" / "entry_points.txt"
    torn.write_bytes(b"\xff\xfe")
    host = host_of(site)
    assert record_of(host, "beside").state == "discovered"
    found = {c.distribution: c for c in host.candidates() if c.unreadable}
    assert [*found] == ["bad", "braintrace-torn", "nameless"]
    assert found["nameless"].unreadable == "ValueError: METADATA has no name"
    assert (found["braintrace-torn"].family, found["bad"].family) == ("torn", "bad")
    assert found["bad"].origin == str(site.folder)


def test_one_that_can_be_read_stands_for_what_is_left_of_another_version(site, host_of):
    site.add("twice", "twice", "", family="twice", version="2.0")
    old = site.folder / "twice-1.0.dist-info"
    old.mkdir()
    (old / "entry_points.txt").write_text("[braintrace.ops]\nno equals sign\n")
    assert record_of(host_of(site), "twice").version == "2.0"


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


class Entry:
    """An entry point as metadata give it."""

    def __init__(self, name, value, group="braintrace.plugins.v1"):
        self.name, self.value, self.group = name, value, group


def test_what_a_candidate_is_called():
    candidate = Candidate("my-conv", "1.0", "/site", (Entry("conv", "my_conv.plugin : p"),))
    assert (candidate.family, candidate.package, candidate.title) == (
        "conv", "my_conv", "'my-conv' 1.0",
    )  # fmt: skip
    assert Candidate("my-conv", "", "").title == "'my-conv'"
    assert Candidate("my-conv", "", "").family == "my-conv"
    assert Candidate("my-conv", "", "").package is None


def test_the_record_of_a_candidate_names_its_exports():
    exports = {("ops", "conv"): Entry("conv", "a:b"), ("nn", "Conv"): Entry("Conv", "a:c")}
    record = Candidate("a", "1", "/site", (), exports).record
    assert record.exports == ("braintrace.conv", "braintrace.nn.Conv")
    assert (record.state, record.family, record.origin) == ("discovered", "a", "/site")


def test_a_scan_finds_those_with_entry_points_and_the_first_of_each(make_site, monkeypatch):
    for name, version in (("second", "2.0"), ("first", "1.0")):
        site = make_site(name)
        site.add("scan-me", "scanned", "", family="scanned", ops=["scan"], version=version)
        site.add("no-plugin", "scanned", "", version="1.0")
        monkeypatch.syspath_prepend(str(site.folder))
    found = {c.distribution: c for c in metadata.scan("0.1.0")}
    assert "no-plugin" not in found
    assert found["scan-me"].version == "1.0"
    assert found["scan-me"].origin == str(make_site("first").folder)
    assert [*found["scan-me"].exports] == [("ops", "scan")]
    assert [*found] == sorted(found)


@pytest.mark.parametrize(
    ("requires", "bounds"),
    [
        (["braintrace-core>=0.1,<0.2"], ("<0.2,>=0.1", True)),
        (["Braintrace_Core >= 9"], (">=9", False)),
        (["braintrace-core!=0.1.0"], ("!=0.1.0", False)),
        (["numpy>=9", "braintrace-corefoo>=9"], ("", True)),
        (['braintrace-core>=9; extra == "a"'], ("", True)),
        ([], ("", True)),
    ],
)
def test_bounds_on_core(requires, bounds):
    assert metadata._bounds_on_core(requires, "0.1.0") == bounds


def test_who_owns_a_package(site, monkeypatch):
    site.add("stranger", "unused", "").add("bystander", "unused", "")
    (site.folder / "stranger-1.0.dist-info" / "RECORD").write_text("ownedpackage/a.py,,\n")
    (site.folder / "bystander-1.0.dist-info" / "RECORD").write_text("ownedpackage2/a.py,,\n")
    monkeypatch.syspath_prepend(str(site.folder))
    found = {owner.distribution for owner in metadata.owners("ownedpackage")}
    assert "stranger" in found and "bystander" not in found


def test_requirements_that_are_not_met(site, monkeypatch):
    site.add("needy", "unused", "", requires="no-such-distribution>=2")
    site.add("content", "unused", "", requires="needy>=1")
    site.add("outgrown", "unused", "", requires="needy<1")
    monkeypatch.syspath_prepend(str(site.folder))
    assert metadata.unmet("needy") == (("no-such-distribution>=2", None),)
    assert metadata.unmet("content") == ()
    assert metadata.unmet("outgrown") == (("needy<1", "1.0"),)
    assert metadata.version_of("needy") == "1.0"
    assert metadata.version_of("no-such-distribution") is None
