# SPDX-License-Identifier: Apache-2.0
"""A file is replaced as a whole or not at all, and nothing else is."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from braintrace.files import replacing as module
from braintrace.files.replacing import replacing, special_kind

KILLED = """
import sys
from braintrace.files.replacing import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def left(folder: Path) -> list[Path]:
    return [*folder.glob(".braintrace-*.tmp")]


def test_what_a_killed_process_leaves_is_removed_by_the_next_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "writing"
        with replacing(str(tmp_path / "other")) as file:  # while the first one lives
            file.write(b"other")
        (kept,) = left(tmp_path)
        assert kept.read_bytes() == b"half"
        process.kill()
    assert left(tmp_path) == [kept] and path.read_bytes() == b"old"
    with replacing(str(tmp_path / "other")) as file, replacing(str(path)) as second:
        assert len(left(tmp_path)) == 2 and kept not in left(tmp_path)
        file.write(b"new")
        second.write(b"too")
    assert sorted(p.read_bytes() for p in tmp_path.iterdir()) == [b"new", b"too"]


def test_what_only_looks_like_a_leftover_stays(tmp_path):
    (tmp_path / ".braintrace-1.tmp").mkdir()
    (tmp_path / ".braintrace-notes.txt").touch()
    (tmp_path / "precious").write_bytes(b"kept")
    (tmp_path / ".braintrace-2.tmp").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".braintrace-3.tmp")
    before = {*tmp_path.iterdir()}
    with replacing(str(tmp_path / "file")):
        pass
    assert {*tmp_path.iterdir()} == before | {tmp_path / "file"}


def test_one_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    class Locks:
        LOCK_EX, taken = 2, False

        def flock(self, file, how):
            if not self.taken:
                self.taken = True
                os.unlink(file.name)

    monkeypatch.setattr(module, "fcntl", Locks())
    with replacing(str(tmp_path / "file")) as file:
        file.write(b"there")
    assert (tmp_path / "file").read_bytes() == b"there"


def test_without_locks_and_where_they_do_not_work(tmp_path, monkeypatch):
    (tmp_path / ".braintrace-1.tmp").touch()
    monkeypatch.setattr(module, "fcntl", None)
    with replacing(str(tmp_path / "file")) as file:
        file.write(b"there")
    assert not left(tmp_path) and (tmp_path / "file").read_bytes() == b"there"


def test_pipes_devices_and_sockets_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        os.symlink("pipe", "link")
        named = {"pipe": "a pipe", "link": "a pipe", "socket": "a socket", os.devnull: "a device"}
        for path, kind in named.items():
            before = os.lstat(path)
            text = f"{path} is {kind}, which a file would replace; path must be that of a file"
            with pytest.raises(FileExistsError, match=re.escape(text)), replacing(path):
                pytest.fail("it was opened")
            assert os.lstat(path) == before
    assert special_kind(__file__) == special_kind(str(tmp_path)) == ""
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert sorted(os.listdir()) == ["link", "pipe", "socket"]


@pytest.mark.parametrize(
    ("name", "number"), [("open", errno.EROFS), ("fsync", errno.ENOSPC), ("replace", errno.EACCES)]
)
def test_what_the_system_refuses_is_told_of_the_file_that_was_asked_for(
    tmp_path, monkeypatch, name, number
):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(what, *args):
        raise OSError(number, os.strerror(number), what if isinstance(what, str) else None, *args)

    if name == "open":
        monkeypatch.setattr(module, "open", refuse, raising=False)
    else:
        monkeypatch.setattr(os, name, refuse)
    said = re.escape(os.strerror(number))
    with pytest.raises(OSError, match=said) as caught, replacing(str(path)) as file:
        file.write(b"new")
    assert caught.value.errno == number and caught.value.filename == str(path)
    assert ".tmp" not in str(caught.value)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"old"
