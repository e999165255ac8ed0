# SPDX-License-Identifier: Apache-2.0
"""Saving and restoring: the methods of a learner in front of the files."""

from __future__ import annotations

from typing import Any, Literal

from ..files.save import restore_learner, save_learner
from .optimizers import with_states
from .restarts import follow_states


def save(self: Any, path: Any, optimizer: Any = None) -> None:
    """Save where the learner stands, to go on from there in another process.

    Saved are all states of the model, the traces, the learner's own states such as
    ``running_index``, the random state of ``brainstate.random``, and the states of the
    optimizer: values, shapes, dtypes and units. The program is not; it is made anew by
    :meth:`compile_graph`.

    Parameters
    ----------
    path
        Of the file, a zip archive that ``numpy.load`` opens. One that is there is replaced, and
        stays as it is when saving fails or the process ends in the middle of it. Where states lie
        in several processes, all of them save, and the first one writes the file.
    optimizer
        What was passed to :meth:`etrace_update`, or anything with brainstate states: a module,
        an optimizer of ``braintools``, a state, or a dict, list or tuple of these. What optax
        transformations have done to the learner's weights is saved in any case.

    Raises
    ------
    CompilationError
        Before :meth:`compile_graph`, or when states of the model were made anew since, of
        another shape, dtype or unit.
    TypeError
        When a state holds something else than arrays and numbers, or for another optimizer.
    OSError
        When the folder does not exist, the file cannot be written, or ``path`` is that of a
        folder, a pipe or a device.
    RuntimeError
        Inside ``jit`` or another transformation.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp, os, tempfile
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "d_rtrl", x, batch_size=2)
    >>> path = os.path.join(tempfile.mkdtemp(), "learner.npz")
    >>> learner.save(path)
    >>> first = learner(x)
    >>> learner.restore(path)
    >>> bool((learner(x) == first).all())
    True
    """
    follow_states(self)
    save_learner(self, path, with_states(self, optimizer))


def restore(
    self: Any, path: Any, optimizer: Any = None, *, only: Literal["parameters"] | None = None
) -> None:
    """Go on from where a saved learner stood, bit for bit.

    The learner, its model and the optimizer are made and compiled as for the one that was
    saved; then their states take the saved values, and so does the random state of
    ``brainstate.random``. Either all of them do, or, when anything does not fit, none.

    Parameters
    ----------
    path
        Of a file of :meth:`save`. Values are put onto the devices where those before them lay,
        whatever devices the file was written from.
    optimizer
        As it was when the file was written. If an optax transformation changed some of the
        weights only, call :meth:`optimizer` with these first.
    only
        ``'parameters'``: those of the model take the saved values and all else stays as it is,
        whatever rule, options, batch size and optimizer the file was saved with. The traces are
        still those of the weights before; :meth:`reset_state` makes them new.

    Raises
    ------
    ValueError
        When the file is that of another learner, model, series of versions (0.1, 0.2) or shape,
        with all the differences; or when it is damaged or none that was saved here; or for
        another ``only``. Types and sizes are compared before any array is read.
    CompilationError, TypeError, RuntimeError
        As for :meth:`save`.
    OSError
        When the file cannot be read.
    """
    follow_states(self)
    with self._watch.paused():
        restore_learner(self, path, with_states(self, optimizer), only)
