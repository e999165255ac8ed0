# SPDX-License-Identifier: Apache-2.0
"""Errors raised by the compiler and the learners, also of the kinds that published code catches."""

from __future__ import annotations

from collections.abc import Mapping


class CompilationError(Exception):
    """A model cannot be compiled: the text says what was found, where, and what to do."""


class NotSupportedError(CompilationError, NotImplementedError):
    """A model uses a construction whose gradient would not be right, so it is refused."""


class CompilationWarning(UserWarning):
    """What a compiled model does not do: credit that is left out, a state that resets miss.

    The text is that of a :class:`CompilationRecord` of level WARNING. Records about a gradient that
    is exact, such as that of a readout, are in the report alone.

    Examples
    --------
    >>> import warnings, brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.ValinaRNNCell(3, 4), batch_size=2)
    >>> with warnings.catch_warnings(record=True, action="always") as said:
    ...     _ = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
    >>> said[0].category.__name__, str(said[0].message)[:38]
    ('CompilationWarning', 'warning: transition_structurally_zero:')
    """


class NotCompiledError(CompilationError, ValueError, RuntimeError):
    """A learner or an executor is used before ``compile_graph``."""


class MissingSettingError(CompilationError, KeyError):
    """A model reads something from ``brainstate.environ`` that is not set."""

    __str__ = Exception.__str__  # that of a KeyError is in quotes


class ExampleInputError(CompilationError, ValueError, TypeError):
    """A model cannot be run for the example inputs, and could be for others."""


class NoTraceError(KeyError, ValueError):
    """A parameter has no trace."""


class NoModulatorError(ValueError, RuntimeError):
    """A rule that needs a modulator is given none."""


def behind(error: BaseException) -> BaseException:
    """The error behind those that containers of ``brainstate``, such as ``Sequential``, raise."""
    while type(error).__module__.startswith("brainstate.") and error.__cause__ is not None:
        error = error.__cause__
    return error


def refuse_unused(cls: type, instead: Mapping[str, str]) -> None:
    """Refuse a class that defines, or inherits, a method that nothing calls any more.

    Raises
    ------
    TypeError
        With the first such name and what to do instead.
    """
    for name, remedy in instead.items():
        if any(name in vars(base) for base in cls.__mro__):
            raise TypeError(f"{cls.__name__} defines {name}, which nothing calls: {remedy}")
