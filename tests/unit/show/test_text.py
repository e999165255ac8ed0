# SPDX-License-Identifier: Apache-2.0
"""Names, numbers and places in few columns."""

from __future__ import annotations

from braintrace.show.text import Names, columns, listed, numbers, short_sources, wrap


def test_telling_parts_of_paths_are_never_left_out() -> None:
    paths = [("net", "encoder", "blocks", k, "attention", "query", "weight") for k in range(20)]
    names = Names(paths)
    short = [names.short(path, 20) for path in paths]
    assert len(set(short)) == 20
    assert short[7] == "net…[7]…weight"
    assert names.short(paths[7], 100) == "net.encoder.blocks[7].attention.query.weight"


def test_wide_characters_take_two_columns() -> None:
    assert [columns(text) for text in ("größe", "深い", "e\u0301")] == [5, 4, 1]
    assert wrap(["深い層深い層", "a"], 6) == ["深い層", "深い層", "a"]


def test_numbers_and_sources_are_short() -> None:
    assert [numbers(n) for n in ([3], [1, 4], [0, 1, 2, 3], [1, 5, 9, 13])] == [
        "3", "1, 4", "0-3", "1, 5, …, 13",
    ]  # fmt: skip
    sources = [
        "/a/b/net.py:3:4 (Net.update)",
        "/a/c/net.py:9:1 (f.<locals>.g)",
        "/a/c/x.py:1:1",
        "",
    ]
    assert list(short_sources(sources).values()) == [
        "b/net.py:3:4 (Net.update)", "c/net.py:9:1 (g)", "x.py:1:1", "",
    ]  # fmt: skip


def test_words_that_are_too_long_are_cut_behind_a_dot() -> None:
    assert wrap(["a", "bc", "d"], 4) == ["a bc", "d"]
    assert wrap(["layers.attention.query"], 12) == ["layers.", "attention.", "query"]
    assert wrap(["abcdefgh"], 3) == ["abc", "def", "gh"]
    assert wrap([], 5) == [""]


def test_a_list_has_commas_between_its_words() -> None:
    assert listed(["a", "b", "c"]) == ["a,", "b,", "c"]
    assert listed(["a"]) == ["a"]


def test_parts_are_left_out_from_the_middle_and_only_as_many_as_must_be() -> None:
    path = ("net", "one", "two", "three", "w")
    names = Names([path])
    whole = "net.one.two.three.w"
    assert names.short(path, len(whole)) == whole
    assert names.short(path, len(whole) - 1) == "net.one…three.w"
    assert names.short(path, 1) == "net…w"  # the first and the last stay


def test_numbers_of_one_step_and_of_several() -> None:
    assert numbers([5, 5, 5, 5]) == "5"
    assert numbers([1, 2, 4, 8]) == "1, 2, 4, 8"
    assert numbers([0, 1, 2]) == "0, 1, 2"
    assert numbers([]) == ""


def test_files_of_one_name_keep_the_folders_that_tell_them_apart() -> None:
    found = short_sources(["/a/x/net.py:1", "/b/x/net.py:2 (f)", "/b/x/net.py:3"])
    assert found == {
        "/a/x/net.py:1": "a/x/net.py:1",
        "/b/x/net.py:2 (f)": "b/x/net.py:2 (f)",
        "/b/x/net.py:3": "b/x/net.py:3",
    }
