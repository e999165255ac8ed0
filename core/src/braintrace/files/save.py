# SPDX-License-Identifier: Apache-2.0
"""What of a learner is saved, and when a saved one may take the place of another.

Every state that a learner goes on from is saved, by name: those of the model, the traces, the
learner's own, the optimizer's, and the random state from which ``brainstate.random`` draws, because
a training loop can draw from it wherever it likes. Beside them stands a description of the learner
in text. A file is restored only where names, types, units and description agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import State, restore_values
from . import storage
from .description import description_of, version_of
from .differences import changed_description, changed_leaves, changed_version
from .held import Held, Learner, held_by, type_of

# --- for users -----------------------------------------------------------------------------------


def save_learner(learner: Learner, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """Save where a learner stands, to go on from there in another process.

    Saved are all states of the model, the traces, the learner's own states such as
    ``running_index``, the random state of ``brainstate.random``, and the states of the optimizer:
    values, shapes, dtypes and units. The program is not; it is made anew by ``compile_graph``.

    Parameters
    ----------
    learner
        A compiled learner.
    path
        Of the file, a zip archive that ``numpy.load`` opens. One that is there is replaced, and
        stays as it is when saving fails or the process ends in the middle of it.
    optimizer
        What holds its state in ``brainstate`` states: a ``brainstate.nn.Module``, an optimizer of
        ``braintools``, a state, or a dict, list or tuple of these.

    Raises
    ------
    CompilationError
        Before ``compile_graph``, or when states of the model were made anew since.
    TypeError
        When a state holds something else than arrays and numbers, or for another optimizer.
    OSError
        When the folder does not exist or the file cannot be written.
    RuntimeError
        Inside ``jit`` or another transformation.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp, os, tempfile
    >>> from braintrace.files.save import restore_learner, save_learner
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "d_rtrl", x, batch_size=2)
    >>> path = os.path.join(tempfile.mkdtemp(), "learner.npz")
    >>> save_learner(learner, path)
    >>> first = learner(x)
    >>> restore_learner(learner, path)
    >>> bool((learner(x) == first).all())
    True
    """
    _check_outside("saved")
    held = held_by(learner, optimizer)
    manifest = {
        "braintrace": version_of(),
        "made_with": {"brainstate": brainstate.__version__, "jax": jax.__version__},
        "description": description_of(learner, optimizer),
        "kinds": {leaf.name: leaf.kind for leaf in held},
        "units": {leaf.name: leaf.unit for leaf in held if leaf.unit},
    }
    types = [type_of(leaf) for leaf in held]
    arrays = (
        (leaf.name, found, storage.encoded(leaf.value))
        for leaf, found in zip(held, types, strict=True)
    )
    storage.write(path, manifest, arrays)


def restore_learner(learner: Learner, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """Go on from where a saved learner stood, bit for bit.

    The learner, its model and the optimizer are made and compiled as for the one that was saved;
    then their states take the saved values, and so does the random state of ``brainstate.random``.
    Either all of them do, or, when anything does not fit, none.

    Parameters
    ----------
    learner
        A compiled learner.
    path
        Of a file that :func:`save_learner` wrote.
    optimizer
        As for :func:`save_learner`; required where one was saved.

    Raises
    ------
    ValueError
        When the file is that of another learner, model, series of versions (0.1, 0.2) or shape,
        with all the differences; or when it is damaged or none that was saved here.
    CompilationError, TypeError, RuntimeError
        As for :func:`save_learner`.
    OSError
        When the file cannot be read.

    Examples
    --------
    See :func:`save_learner`.
    """
    _check_outside("restored")
    held = held_by(learner, optimizer)
    content = storage.read(path)
    found = [
        *changed_version(content),
        *changed_description(content, description_of(learner, optimizer)),
        *changed_leaves(content, held),
    ]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ValueError(
            f"{storage.file_name(path)} was saved from another learner than this one; nothing was "
            f"restored. What differs:{lines}"
        )
    _assign(_values(content, held, path))


# --- what is written -----------------------------------------------------------------------------


def _values(
    content: storage.Content, held: list[Held], path: str | os.PathLike[str]
) -> dict[State, Any]:
    """The new value of every state."""
    leaves: dict[State, list[Any]] = {}
    for leaf in held:
        raw, stored = content.arrays[leaf.name], content.types[leaf.name]
        try:
            value = storage.decoded(raw, stored, leaf.value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{storage.file_name(path)} is damaged: {leaf.name} cannot be read: {error}"
            ) from error
        leaves.setdefault(leaf.state, []).append(value)
    return {
        state: jax.tree.unflatten(jax.tree.structure(state.value), new)
        for state, new in leaves.items()
    }


def _assign(values: Mapping[State, Any]) -> None:
    """Set all states, or none when one of them refuses its value."""
    before = {state: state.value for state in values}
    try:
        for state, value in values.items():
            state.restore_value(value)
    except BaseException:
        restore_values(before)
        raise


def _check_outside(done: str) -> None:
    """A program that is being traced would hold the values of the moment it was traced."""
    if versions.is_traced(jnp.zeros(())):
        raise RuntimeError(
            f"a learner cannot be {done} inside jit, for_loop or another transformation; do it "
            "between the calls of what is compiled"
        )
