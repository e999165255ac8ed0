# SPDX-License-Identifier: Apache-2.0
"""Arguments by name: those of a step are a tuple, in the order of the model's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import brainstate
import jax

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@jax.tree_util.register_pytree_with_keys_class
class ByName(dict[str, Any]):
    """Arguments that have no place: the last one of a step, if there are any."""

    def tree_flatten_with_keys(self) -> tuple[list[Any], tuple[str, ...]]:
        """Values with their keys; the names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Any) -> ByName:
        return cls(zip(names, values, strict=True))


def run_with(model: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The model's result for arguments in the form of :func:`in_order`."""
    if args and isinstance(args[-1], ByName):
        return model(*args[:-1], **args[-1])
    return model(*args)


def in_order(
    model: brainstate.nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Arguments by place and by name as one tuple.

    Each stands where the signature of the model has it; those that are keyword-only there, or
    behind one that is left out, come last, in a :class:`ByName`. It raises ``TypeError`` when the
    model does not take them.
    """
    signature = signature_of(model)
    try:
        bound = signature.bind(*args, **named)
    except TypeError as error:
        raise TypeError(f"{type(model).__name__}{signature}: {error}") from None
    return (*bound.args, ByName(bound.kwargs)) if bound.kwargs else bound.args


class _Leaf:
    """In place of an array."""

    def __repr__(self) -> str:
        return "*"


def shown(treedef: Any) -> str:
    """The structure of arguments as a call has it: ``(*, gain=*)``."""
    with suppress(Exception):  # of nodes that are made of arrays alone
        args = treedef.unflatten([_Leaf()] * treedef.num_leaves)
        by_name = [f"{k}={v!r}" for arg in args if isinstance(arg, ByName) for k, v in arg.items()]
        by_place = [repr(arg) for arg in args if not isinstance(arg, ByName)]
        return f"({', '.join([*by_place, *by_name])})"
    return str(treedef)


def names_of(model: brainstate.nn.Module) -> frozenset[str]:
    """Names of the arguments of a model's step."""
    return frozenset(p.name for p in signature_of(model).parameters.values() if p.kind in NAMED)


def signature_of(model: brainstate.nn.Module) -> inspect.Signature:
    """The signature of a model's step; any arguments, where it cannot be told."""
    called = type(model).__call__ is not brainstate.nn.Module.__call__
    with suppress(TypeError, ValueError):
        return inspect.signature(model.__call__ if called else model.update)
    return inspect.signature(lambda *args, **named: None)
