# SPDX-License-Identifier: Apache-2.0
"""A file that takes the place of another in one step, or leaves it as it is.

It is written under another name in the same folder, ``.braintrace-*.tmp``, and locked until it has
its place. What a process that was killed leaves behind is locked by nobody, and the next file that
is written to the folder removes it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape, glob
from importlib import import_module
from typing import Any, BinaryIO

fcntl: Any = None  # on Windows, where a file that is open cannot be removed
with suppress(ImportError):
    fcntl = import_module("fcntl")

_KINDS = {"a pipe": stat.S_ISFIFO, "a device": stat.S_ISCHR, "a socket": stat.S_ISSOCK}
_KINDS |= {"a block device": stat.S_ISBLK}


def special_kind(path: str) -> str:
    """``'a pipe'``, ``'a device'``, ..., of what is neither a file nor a folder; else nothing."""
    mode = os.stat(path).st_mode
    return next((kind for kind, is_of in _KINDS.items() if is_of(mode)), "")


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A new file, which takes the place of ``path`` when the block ends without an error.

    A symbolic link stays, and the file it leads to is replaced. It raises ``OSError``, before
    anything is written, when there is no such folder, it cannot be written to, or something else
    than a file has the name.
    """
    target = _target(path)
    folder = os.path.dirname(target)
    try:
        _remove_leftovers(folder)
        temporary, file, lock = _temporary(folder)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if os.path.exists(target):
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            if lock is not None:
                os.close(lock)
    except OSError as error:
        if error.errno is not None:  # it is the file that the user named which was not written
            error.filename, error.filename2 = target, None
        raise
    _bring_to_disk(folder)


def _target(path: str) -> str:
    """The absolute path of the file itself."""
    target = os.path.realpath(path)
    with suppress(FileNotFoundError):
        if kind := special_kind(path):
            raise FileExistsError(
                f"{path} is {kind}, which a file would replace; path must be that of a file"
            )
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is no folder; make it before saving to {path}")
    if os.path.isdir(target):
        raise IsADirectoryError(f"{path} is a folder; path must be that of a file")
    return target


def _temporary(folder: str) -> tuple[str, BinaryIO, int | None]:
    """A new file in a folder, its name, and a descriptor that locks it until it is closed."""
    while True:
        name = os.path.join(folder, f".braintrace-{secrets.token_hex(8)}.tmp")
        file = open(name, "xb")  # noqa: SIM115 - who asked for it closes it
        if fcntl is None:
            return name, file, None
        with suppress(OSError):  # where there are no locks, nobody removes what is left, either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return name, file, os.dup(file.fileno())
        file.close()  # taken for a leftover just before it was locked


def _remove_leftovers(folder: str) -> None:
    """Remove the files that no process is writing any more."""
    for name in glob(os.path.join(escape(folder), ".braintrace-*.tmp")):
        with suppress(OSError):
            if fcntl is None:
                os.unlink(name)
            else:
                _remove_unlocked(name)


def _remove_unlocked(name: str) -> None:
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)
    finally:
        os.close(descriptor)


def _bring_to_disk(folder: str) -> None:
    """Make the new name of a file last; not every system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
