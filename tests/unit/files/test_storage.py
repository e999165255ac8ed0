# SPDX-License-Identifier: Apache-2.0
"""One file: written as a whole or not at all, and read only if it is sound."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.files import storage


def written(path: Path, **values: Any) -> storage.Content:
    arrays = [(name, storage.type_of(value), value) for name, value in values.items()]
    storage.write(path, {"note": "kept"}, arrays)
    return read(path)


def read(path: Path) -> storage.Content:
    """With all arrays in the place of what reads them."""
    with storage.opened(path) as content:
        found: Any = content.arrays(content.types)
        return content._replace(arrays=found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, ((), "float64", True, "python")),
        (True, ((), "bool", False, "python")),
        (np.ones((2, 3), np.int8), ((2, 3), "int8", False, "numpy")),
        (np.float32(1), ((), "float32", False, "numpy")),
        (jnp.ones(2, jnp.bfloat16), ((2,), "bfloat16", False, "jax")),
        (jax.random.key(0), ((), "key<fry>", False, "jax")),
    ],
    ids=str,
)
def test_the_type_of_an_array(value, expected):
    assert storage.type_of(value) == storage.ArrayType(*expected)


@pytest.mark.parametrize("value", ["text", None, object(), np.array(["a"]), 2**80])
def test_what_is_no_array_has_no_type(value):
    with pytest.raises(TypeError, match=f"a {type(value).__name__} is no array that can be saved"):
        storage.type_of(value)


def test_bits_of_dtypes_that_numpy_does_not_know_are_integers():
    raw = storage.encoded(jnp.array([1.0, -2.0], jnp.bfloat16))
    assert raw.dtype == np.uint16 and raw.tolist() == [0x3F80, 0xC000]
    assert storage.encoded(jax.random.key(3)).tolist() == [0, 3]
    stored = storage.ArrayType((2,), "bfloat16", False, "jax")
    back = storage.decoded(raw, stored, jnp.ones(2, "bfloat16"))
    assert back.dtype == jnp.bfloat16 and back.tolist() == [1.0, -2.0]


def test_bytes_in_the_other_order_are_turned():
    stored = storage.type_of(np.arange(3.0))
    found = storage.decoded(np.arange(3.0).astype(">f8"), stored, np.zeros(3))
    assert found.tolist() == [0.0, 1.0, 2.0] and found.dtype == np.dtype("float64")


def test_an_array_that_is_not_of_its_type_is_refused():
    wrong = storage.ArrayType((3,), "float64", False, "jax")
    with pytest.raises(ValueError, match=r"it holds ArrayType\(shape=\(2,\).*manifest says"):
        storage.decoded(np.zeros(2), wrong, jnp.zeros(2))


def test_what_is_read_is_what_was_written(tmp_path):
    content = written(tmp_path / "file", a=jnp.arange(3), b=0.5)
    assert content.manifest["note"] == "kept"
    assert content.manifest["format_version"] == storage.FORMAT_VERSION
    assert content.types["b"] == storage.ArrayType((), "float64", True, "python")
    assert content.arrays["a"].tolist() == [0, 1, 2]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        written(tmp_path / name, a=jnp.arange(3))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_numbers_of_a_manifest_must_be_of_json(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="Out of range float values"):
        storage.write(path, {"note": float("nan")}, [])
    assert [*tmp_path.iterdir()] == []


def archive(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("_", "."), text)
    return path


HEAD = '"format": "braintrace learner", "format_version": 1'


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({}, "is not a file of a saved learner: it has no manifest.json"),
        ({"manifest_json": "[]"}, "its manifest.json is not of that format"),
        ({"manifest_json": '{"format": "else"}'}, "its manifest.json is not of that format"),
        (
            {"manifest_json": '{"format": "braintrace learner", "format_version": 7}'},
            "has the format version 7, written by braintrace None; this one reads version 1",
        ),
        ({"manifest_json": f"{{{HEAD}}}"}, "damaged: its manifest.json lists no arrays"),
        (
            {"manifest_json": f'{{{HEAD}, "arrays": {{"a": {{"shape": [1]}}}}}}'},
            "does not describe an array",
        ),
        ({"manifest_json": "no json"}, "truncated or damaged"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path, members, text):
    path = archive(tmp_path / "file", **members)
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def rewritten(path: Path, name: str, data: bytes | None = None, how: int = 0) -> Path:
    """A file with one member changed, or compressed in another way."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_name("new"), "w") as new:
        for member in old.namelist():
            changed = data if member == name and data is not None else old.read(member)
            new.writestr(member, changed, how if member == name else None)
    return path.with_name("new")


def test_what_is_larger_than_it_should_be_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    written(path, a=np.zeros(3))
    for data in (bytes(2**15), b""):
        with pytest.raises(ValueError, match="larger than what it stands for|damaged"):
            read(rewritten(path, "a.npy", data, zipfile.ZIP_DEFLATED))
    # a header that claims more than follows, which is not asked of the machine
    claimed = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, "
    claimed += b"'shape': (9999999999999,), }".ljust(118 - 41) + b"\n"
    with pytest.raises(ValueError, match=r"says to be float64\[9999999999999\], and is not"):
        read(rewritten(path, "a.npy", claimed))
    monkeypatch.setattr(storage, "MOST_OF_MANIFEST", 10)
    with pytest.raises(ValueError, match=r"manifest.json is larger.*\(10 bytes at most\)"):
        read(path)


@pytest.mark.parametrize("how", ["DEFLATED", "BZIP2", "LZMA"])
def test_compressed_members(tmp_path, how):
    """Someone may have packed a file again; what is damaged then is one kind of error."""
    path = tmp_path / "file"
    values = written(path, a=np.arange(300.0)).arrays["a"]
    packed = rewritten(path, "a.npy", how=getattr(zipfile, f"ZIP_{how}"))
    if how != "DEFLATED":
        with pytest.raises(ValueError, match="a.npy is compressed in a way that is not read"):
            read(packed)
        return
    assert np.array_equal(read(packed).arrays["a"], values)
    whole = packed.read_bytes()
    for place in range(whole.index(b"a.npy") + 5, whole.index(b"manifest.json") - 30, 37):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="truncated or damaged"):
            read(packed)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for somebody to write
    for path, kind in ((tmp_path / "pipe", "a pipe"), (os.devnull, "a device")):
        with pytest.raises(ValueError, match=f"is {kind}, and no file of a saved learner"):
            read(path)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="is no folder; make it before saving"):
        storage.write(tmp_path / "absent" / "file", {}, [])
    with pytest.raises(IsADirectoryError, match="path must be that of a file"):
        storage.write(tmp_path, {}, [])


def test_the_name_of_a_file():
    assert storage.file_name(Path("a") / "b") == os.path.join("a", "b")
    assert storage.file_name(b"a") == "a"
    with pytest.raises(TypeError, match=r"path must be a str or os\.PathLike, got int"):
        storage.file_name(3)
    with pytest.raises(ValueError, match="got an empty one"):
        storage.file_name("")
