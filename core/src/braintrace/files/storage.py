# SPDX-License-Identifier: Apache-2.0
"""The file of a saved learner: arrays by name and a manifest, replaced as a whole or not at all.

A zip archive in the layout of numpy's ``.npz``: the member ``manifest.json`` says what the file is
and how each array is to be read, and every array is a member of its own in numpy's ``.npy`` format.
Nothing is pickled. The same content gives the same bytes.

Numpy has no name for the dtypes of ``ml_dtypes`` (bfloat16, float8, int4) nor for random keys, so
the bits of the former are stored as unsigned integers, and of the latter their data.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions

FORMAT = "braintrace learner"

#: To be raised whenever the file, or what an array in it means, changes.
FORMAT_VERSION = 1

MANIFEST = "manifest.json"

#: What reading a damaged archive, array or manifest can raise.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError)


# --- one array -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayType:
    """What an array is besides its bits.

    ``shape`` and ``dtype`` are as JAX sees them. ``weak_type``: whether its dtype gives way to
    others, as that of a Python number does. ``held_as``: whose it is, ``'jax'``, ``'numpy'`` or
    ``'python'``.
    """

    shape: tuple[int, ...]
    dtype: str
    weak_type: bool
    held_as: str


def type_of(value: Any) -> ArrayType:
    """The type of an array or a number; raises ``TypeError`` for anything else."""
    try:
        aval: Any = jax.typeof(value)
    except (TypeError, OverflowError) as error:
        raise TypeError(
            f"a {type(value).__name__} is no array that can be saved: {error}"
        ) from None
    kinds = {"jax": jax.Array, "numpy": np.ndarray | np.generic, "python": object}
    held_as = next(name for name, kind in kinds.items() if isinstance(value, kind))
    return ArrayType(tuple(aval.shape), aval.dtype.name, bool(aval.weak_type), held_as)


def encoded(value: Any) -> np.ndarray:
    """An array or a number as a numpy array of a dtype that every numpy knows."""
    if _is_key(value):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def decoded(raw: np.ndarray, stored: ArrayType, like: Any) -> Any:
    """The array that :func:`encoded` was given, in the place of one of the same shape and dtype.

    It raises ``ValueError`` when what was stored is not of its type.
    """
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if not _is_key(like):
        dtype = np.dtype(jax.typeof(like).dtype)  # type: ignore[attr-defined]
        raw = raw if dtype.kind in "biufc" else raw.view(dtype)
    value: Any = raw
    if stored.held_as == "python":
        value = raw[()].item()
    elif stored.held_as != "numpy":
        value = _on_device(raw, stored.weak_type, like)
    found = type_of(value)
    if found != stored:
        raise ValueError(f"it holds {found}, and the manifest says {stored}")
    return value


def _on_device(raw: np.ndarray, weak_type: bool, like: Any) -> jax.Array:
    """An array of JAX, where ``like`` is if that was put somewhere on purpose."""
    if _is_key(like):
        array = jax.random.wrap_key_data(jnp.array(raw), impl=jax.random.key_impl(like))
    else:
        with versions.types_of([jax.ShapeDtypeStruct(raw.shape, raw.dtype)]):
            array = jnp.array(raw)
            array = _weakly_typed(array.shape, array.dtype)(array) if weak_type else array
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(array, like.sharding) if committed else array


@lru_cache(maxsize=64)
def _weakly_typed(shape: tuple[int, ...], dtype: Any) -> Any:
    """A function that copies an array into a weakly typed one.

    The type of a state is part of what its readers are compiled for, and JAX has no constructor for
    weakly typed arrays; a program that was compiled for them returns them.
    """
    weak = jax.ShapeDtypeStruct(shape, dtype, weak_type=True)
    return jax.jit(jnp.copy).lower(weak).compile()


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


# --- writing -------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    arrays: Iterable[tuple[str, ArrayType, Any]],
) -> None:
    """Write a file, or leave the one that is there as it is.

    The file is written under another name in the same folder, brought to the disk, and then takes
    the place of the old one in one step. A process that is killed can leave a file
    ``.braintrace-*.tmp`` behind.

    A symbolic link stays, and the file it leads to is replaced. ``manifest`` is of strings,
    numbers, lists and dicts. It raises ``OSError`` when there is no such folder, or it cannot be
    written to.
    """
    target = _target(path)
    temporary = os.path.join(os.path.dirname(target), f".braintrace-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                types = {}
                for name, stored, value in arrays:
                    types[name] = asdict(stored)
                    with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, encoded(value), allow_pickle=False)
                version = {"format": FORMAT, "format_version": FORMAT_VERSION}
                head = json.dumps(
                    version | {**manifest, "arrays": types}, indent=1, allow_nan=False
                )
                archive.writestr(_member(MANIFEST), head)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _bring_to_disk(os.path.dirname(target))


def _target(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file itself."""
    target = os.path.realpath(file_name(path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is no folder; make it before saving to {path}")
    if os.path.isdir(target):
        raise IsADirectoryError(f"{path} is a folder; path must be that of a file")
    return target


def file_name(path: Any) -> str:
    """A path as text; raises ``TypeError`` for anything else, and ``ValueError`` for nothing."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path must be a str or os.PathLike, got {type(path).__name__}") from None
    if not text:
        raise ValueError("path must be that of a file, got an empty one")
    return text


def _member(name: str) -> zipfile.ZipInfo:
    """A member that says nothing of when or where it was written."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info


def _bring_to_disk(folder: str) -> None:
    """Make the new name of a file last; not every system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- reading -------------------------------------------------------------------------------------


class Content(NamedTuple):
    """What is in a file: its manifest, and arrays as they were stored, by name."""

    manifest: Mapping[str, Any]
    types: Mapping[str, ArrayType]
    arrays: Mapping[str, np.ndarray]


def read(path: str | os.PathLike[str]) -> Content:
    """Read a whole file, every array of which is checked against its checksum.

    It raises ``OSError`` when it cannot be read, and ``ValueError`` when it was not written by
    :func:`write`, or by that of a newer format, or is damaged.
    """
    name = file_name(path)
    try:
        with open(name, "rb") as file, zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive)
            types = {key: _array_type(entry) for key, entry in manifest["arrays"].items()}
            raw = {key: io.BytesIO(archive.read(f"{key}.npy")) for key in types}
            read_array = partial(np.lib.format.read_array, allow_pickle=False)
            return Content(manifest, types, {key: read_array(file) for key, file in raw.items()})
    except _Foreign as error:
        raise ValueError(f"{name} {error}") from None
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the file cannot be read; EINVAL is a jump to a place in front of its start
        raise ValueError(
            f"{name} is not a file of a saved learner, or is truncated or damaged: {error}"
        ) from error


class _Foreign(Exception):
    """A sound file that is not for this reader."""


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise _Foreign(f"is not a file of a saved learner: it has no {MANIFEST}")
    manifest = json.loads(archive.read(MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _Foreign(f"is not a file of a saved learner: its {MANIFEST} is not of that format")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise _Foreign(
            f"has the format version {manifest.get('format_version')}, written by braintrace "
            f"{manifest.get('braintrace')}; this one reads version {FORMAT_VERSION}"
        )
    if not isinstance(manifest.get("arrays"), dict):
        raise ValueError(f"its {MANIFEST} lists no arrays")
    return manifest


def _array_type(entry: Any) -> ArrayType:
    try:
        return ArrayType(**{**entry, "shape": tuple(entry["shape"])})
    except TypeError as error:
        raise ValueError(f"its {MANIFEST} does not describe an array: {error}") from None
