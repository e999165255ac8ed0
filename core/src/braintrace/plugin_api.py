# SPDX-License-Identifier: Apache-2.0
"""All that a plugin imports from braintrace; public and versioned.

A plugin is an instance of a small class with methods marked ``hookimpl``, found through the
entry point group ``braintrace.plugins.v1``:

>>> from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl
>>> scale = ETPPrimitiveSpec("doc_api_scale", lambda x, w: x * w)
>>> class ScalePlugin:
...     @hookimpl
...     def braintrace_plugin_info(self):
...         return PluginInfo("scale", distribution="example-scale", version="1.0")
...
...     @hookimpl
...     def braintrace_primitives(self, api):
...         return [scale]

Further hooks are optional: ``braintrace_algorithms(api)`` returns learner classes by name,
``braintrace_conformance_cases(api)`` cases for the conformance kit, ``braintrace_doctor(context)``
an iterable of :class:`Finding`, and ``braintrace_explain(record)`` one line of advice for a
diagnostic of the compiler, or ``None``.

What operations and layers of every family need is here, too: arguments checked and split into
arrays and units (:func:`real_array`, :func:`processed`, :func:`bias_in_unit`, :func:`with_unit`),
leading axes as one batch (:func:`by_rows`), sizes and initial values of parameters
(:func:`as_size`, :func:`as_count`, :func:`initial_value`, :func:`keyword_key`, :func:`seeded`), the
product that a weight's gradient is (:func:`sum_of_outer`), and types for their signatures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import jax  # noqa: F401  as a whole: threads that enter it by different modules find halves of it

from .base.errors import CompilationError, NotSupportedError
from .ops.arguments import (
    ArrayLike,
    Initializer,
    ParameterFn,
    Size,
    as_count,
    as_size,
    bias_in_unit,
    by_rows,
    initial_value,
    keyword_key,
    processed,
    real_array,
    seeded,
    with_unit,
)
from .ops.products import sum_of_outer
from .ops.spec import ETPPrimitiveSpec, Rows
from .plugins.errors import PluginError
from .plugins.hooks import hookimpl
from .plugins.process import host
from .plugins.records import API, DoctorContext, Finding, HostInfo, PluginInfo

if TYPE_CHECKING:
    from .learners.learner import ETraceAlgorithm
    from .learners.vjp import ETraceVjpAlgorithm
else:

    def __getattr__(name: str) -> Any:
        """The bases of learners, which most plugins do without."""
        where = {"ETraceAlgorithm": "learner", "ETraceVjpAlgorithm": "vjp"}
        if name not in where:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__package__}.learners.{where[name]}"), name)


__all__ = [
    "API",
    "ArrayLike",
    "CompilationError",
    "DoctorContext",
    "ETraceAlgorithm",
    "ETraceVjpAlgorithm",
    "ETPPrimitiveSpec",
    "Finding",
    "HostInfo",
    "Initializer",
    "NotSupportedError",
    "ParameterFn",
    "PluginInfo",
    "Rows",
    "Size",
    "as_count",
    "as_size",
    "bias_in_unit",
    "bind",
    "by_rows",
    "hookimpl",
    "initial_value",
    "keyword_key",
    "processed",
    "real_array",
    "seeded",
    "sum_of_outer",
    "with_unit",
]


def bind(spec: ETPPrimitiveSpec, *operands: Any, **params: Any) -> Any:
    """Apply the operation of ``spec`` as an ETP primitive.

    Parameters
    ----------
    spec
        One of the specifications that the plugin returns from ``braintrace_primitives``.
    operands
        Arrays, in the order of ``spec.impl``; no units.
    params
        Static parameters, as ``spec.impl`` takes them.

    Returns
    -------
    jax.Array
        What ``spec.impl`` returns.

    Raises
    ------
    CompilationError
        When the plugin that owns the operation is disabled, failed to load, is incompatible or
        in conflict: its parameters would not be trained.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> def scale(x, w):
    ...     return x * w
    >>> bind(ETPPrimitiveSpec("doc_bind_scale", scale), jnp.ones(2), jnp.full(2, 3.0)).tolist()
    [3.0, 3.0]
    """
    try:
        primitive = host().primitive_of(spec)
    except PluginError as error:
        raise CompilationError(str(error)) from error.__cause__ or error
    return primitive.bind(*operands, **params)
