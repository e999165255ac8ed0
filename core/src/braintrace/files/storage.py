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
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from .replacing import replacing, special_kind

FORMAT = "braintrace learner"

#: To be raised whenever the file, or what an array in it means, changes.
FORMAT_VERSION = 1

MANIFEST = "manifest.json"

#: Bytes that are read at most, whatever a file claims: of a manifest, of what stands in front of an
#: array, of one random key. Of an array, as many as the learner has that it is restored to.
MOST_OF_MANIFEST, MOST_OF_HEADER, MOST_OF_KEY = 2**26, 2**14, 2**6

_PLAIN = zipfile.ZIP_STORED


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
    if is_shared(value) and not value.is_fully_replicated:
        value = _processes().process_allgather(value, tiled=True)
    array = np.asarray(value)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def decoded(raw: np.ndarray, stored: ArrayType, like: Any) -> Any:
    """The array that :func:`encoded` was given, in the place of one of the same shape.

    It raises ``ValueError`` when what was stored is not of its type.
    """
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if not _is_key(like):
        dtype = jnp.dtype(stored.dtype)
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
    if is_shared(like):
        return versions.put(raw, like.sharding)
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


def is_shared(value: Any) -> bool:
    """Whether an array is one of several processes together."""
    return isinstance(value, jax.Array) and not value.is_fully_addressable


def _processes() -> Any:
    """What JAX has for several processes, which is imported where there are some."""
    return import_module("jax.experimental.multihost_utils")


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


# --- writing -------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    arrays: Iterable[tuple[str, ArrayType, Any]],
) -> None:
    """Write a file, or leave the one that is there as it is.

    ``manifest`` is of strings, numbers, lists and dicts. It raises ``OSError`` when there is no
    such folder, it cannot be written to, or something else than a file has the name.

    If processes share an array, all of them call this, the first one writes, and none goes on
    before it is done.
    """
    arrays = list(arrays)
    if not any(is_shared(value) for _, _, value in arrays):
        _write(path, manifest, arrays)
        return
    try:
        if jax.process_index() == 0:
            _write(path, manifest, arrays)
        else:
            for _, _, value in arrays:
                encoded(value)
    finally:
        _processes().sync_global_devices(f"braintrace: {file_name(path)} is saved")


def _write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    arrays: Iterable[tuple[str, ArrayType, Any]],
) -> None:
    with replacing(file_name(path)) as file, zipfile.ZipFile(file, "w", _PLAIN) as archive:
        types = {}
        for name, stored, value in arrays:
            types[name] = asdict(stored)
            with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, encoded(value), allow_pickle=False)
        version = {"format": FORMAT, "format_version": FORMAT_VERSION}
        head = json.dumps(version | {**manifest, "arrays": types}, indent=1, allow_nan=False)
        archive.writestr(_member(MANIFEST), head)


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


# --- reading -------------------------------------------------------------------------------------


class Content(NamedTuple):
    """What is in a file: its manifest, and the types of its arrays, by name.

    ``arrays`` reads those of some names, as they were stored, each checked against its checksum; it
    raises ``ValueError`` for one that is damaged, or larger than its type says.
    """

    manifest: Mapping[str, Any]
    types: Mapping[str, ArrayType]
    arrays: Callable[[Iterable[str]], dict[str, np.ndarray]]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Content]:
    """A file whose manifest was read, and none of its arrays yet.

    It raises ``OSError`` when it cannot be read, and ``ValueError`` when it was not written by
    :func:`write`, or by that of a newer format, or is damaged.
    """
    name = file_name(path)
    if kind := special_kind(name):
        raise ValueError(f"{name} is {kind}, and no file of a saved learner")
    with ExitStack() as stack:
        with _read_from(name):
            archive = stack.enter_context(zipfile.ZipFile(name))
            manifest = _manifest(archive)
            types = {key: _array_type(entry) for key, entry in manifest["arrays"].items()}
            missing = {f"{key}.npy" for key in types}.difference(archive.namelist())
            if missing:
                raise ValueError(f"it has no {min(missing)}")

        def arrays(names: Iterable[str]) -> dict[str, np.ndarray]:
            with _read_from(name):
                return {key: _array(archive, key, types[key]) for key in names}

        yield Content(manifest, types, arrays)


@contextmanager
def _read_from(name: str) -> Iterator[None]:
    """Whatever reading a damaged archive, manifest or array raises is one kind of error."""
    try:
        yield
    except _Foreign as error:
        raise ValueError(f"{name} {error}") from None
    except Exception as error:
        system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if system or isinstance(error, MemoryError):
            raise  # it cannot be read; EINVAL is a jump to a place in front of its start
        raise ValueError(
            f"{name} is not a file of a saved learner, or is truncated or damaged: {error}"
        ) from error


def _member_of(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most so many bytes, which is not read if it says to be larger, or is."""
    member = archive.getinfo(name)
    if member.compress_type not in (_PLAIN, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that is not read here")
    if member.file_size <= most:
        with archive.open(member) as file:
            data = file.read(most + 1)
        if len(data) <= most:
            return data
    raise ValueError(f"{name} is larger than what it stands for ({most} bytes at most)")


def _array(archive: zipfile.ZipFile, name: str, stored: ArrayType) -> np.ndarray:
    """One array; its header has to agree with the bytes that follow before any are taken."""
    most = math.prod(stored.shape) * _bytes_each(stored.dtype) + MOST_OF_HEADER
    file = io.BytesIO(data := _member_of(archive, f"{name}.npy", most))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name}.npy is of another version of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name}.npy says to be {dtype}{[*shape]}, and is not")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _bytes_each(dtype: str) -> int:
    """The bytes of one number; of a random key, more than any has."""
    return MOST_OF_KEY if dtype.startswith("key<") else np.dtype(dtype).itemsize


class _Foreign(Exception):
    """A sound file that is not for this reader."""


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise _Foreign(f"is not a file of a saved learner: it has no {MANIFEST}")
    manifest = json.loads(_member_of(archive, MANIFEST, MOST_OF_MANIFEST))
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
    """An entry of a manifest; it raises ``ValueError`` for what describes no array."""
    try:
        found = ArrayType(**{**entry, "shape": tuple(entry["shape"])})
        sizes = all(type(n) is int and n >= 0 for n in found.shape)
        if not sizes or not isinstance(found.dtype, str):
            raise TypeError(f"{found}")
    except TypeError as error:
        raise ValueError(f"its {MANIFEST} does not describe an array: {error}") from None
    return found
