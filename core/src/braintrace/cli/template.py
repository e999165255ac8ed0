# SPDX-License-Identifier: Apache-2.0
"""The files of a new plugin. ``@NAME@`` is the family, ``@CORE@`` the bounds on core."""

from __future__ import annotations

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "braintrace-@DASHED@"
version = "0.1.0"
description = "The operation @NAME@ for braintrace"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["braintrace-core@CORE@", "jax>=0.10.2"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points."braintrace.plugins.v1"]
@NAME@ = "braintrace_@NAME@._plugin:plugin"

[project.entry-points."braintrace.ops"]
@NAME@ = "braintrace_@NAME@:@NAME@"

[tool.hatch.build.targets.wheel]
packages = ["src/braintrace_@NAME@"]

[tool.hatch.build.targets.sdist]
include = ["src", "tests", "README.md"]

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.ruff]
line-length = 100
lint.extend-select = ["I"]
"""

README = """\
# braintrace-@DASHED@

The operation `braintrace.@NAME@(x, weight)`, trained by eligibility traces.

```console
$ python -m pip install -e ".[test]"
$ python -m pytest
$ braintrace doctor @NAME@
```

| file | what to change |
|---|---|
| `src/braintrace_@NAME@/_primitives.py` | what the operation computes, and the rules of its trace |
| `src/braintrace_@NAME@/_ops.py` | the function that users call |
| `src/braintrace_@NAME@/_plugin.py` | what the plugin tells braintrace about itself |
| `src/braintrace_@NAME@/_cases.py` | small examples that the conformance tests use |
| `pyproject.toml` | the exported names, as in `_plugin.py`; the licence, which you choose |

A rule may be left out of a specification: braintrace then derives one from `impl`. The conformance
tests compare the rules that are written with the derived ones.

To publish: `python -m build`, try the wheel by file in an empty environment, upload it.
"""

INIT = '''\
"""The operation ``@NAME@``, which is also ``braintrace.@NAME@``."""

from ._ops import @NAME@

__version__ = "0.1.0"
__all__ = ["@NAME@"]
'''

OPS = '''\
"""The operation ``@NAME@``: the checks around its primitives."""

import jax
import jax.numpy as jnp
from braintrace.plugin_api import bind

from ._primitives import BATCHED, SINGLE


def @NAME@(x: jax.Array, weight: jax.Array) -> jax.Array:
    """``x * weight``: a trained factor for each position.

    Parameters
    ----------
    x
        Input [n] or [batch, n].
    weight
        Parameter [n].

    Returns
    -------
    jax.Array
        Array of the shape of ``x``.

    Raises
    ------
    ValueError
        When the shapes do not fit.
    """
    x, weight = jnp.asarray(x), jnp.asarray(weight)
    if x.ndim not in (1, 2) or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"@NAME@: x must have shape [n] or [batch, n] and weight [n], got {x.shape} and "
            f"{weight.shape}"
        )
    return bind(BATCHED if x.ndim == 2 else SINGLE, x, weight)
'''

PRIMITIVES = '''\
"""The primitives: ``y = x * weight`` for one example and for a batch.

Shapes: ``x`` [B?, n], ``weight`` [n], ``y`` [B?, n]; ``S`` is the number of states of a position.
"""

import jax.numpy as jnp
from braintrace.plugin_api import ETPPrimitiveSpec


def _impl(x, weight):
    return x * weight


def _yw_to_w(dy, trace, **params):
    """Entry ``p`` of the weight feeds position ``p`` of ``y``: its trace is scaled by ``dy[p]``."""
    return {"weight": trace["weight"] * dy}


def _xy_to_dw(x, dy, weights, **params):
    """The cotangent of the weight, the VJP of ``_impl``."""
    return {"weight": x * dy}


def _xy_to_dw_batched(x, dy, weights, **params):
    """The same, summed over the batch."""
    return {"weight": (x * dy).sum(0)}


def _init_drtrl(x_var, y_var, weight_vars, num_state):
    """The trace of each parameter: zeros [B?, n, S]."""
    return {"weight": jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)}


def _init_pp(x_var, y_var, weight_vars, num_state):
    """The trace of each output: zeros [B?, n, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


SINGLE = ETPPrimitiveSpec(
    name="etp_@NAME@",
    impl=_impl,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    batched_counterpart="etp_@NAME@_batched",
)

BATCHED = ETPPrimitiveSpec(
    name="etp_@NAME@_batched",
    impl=_impl,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw_batched,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    batched=True,
)
'''

PLUGIN = '''\
"""The plugin object that the entry point ``braintrace.plugins.v1: @NAME@`` names."""

from braintrace.plugin_api import PluginInfo, hookimpl

from . import __version__
from ._primitives import BATCHED, SINGLE


class Plugin:
    """The family ``@NAME@``."""

    @hookimpl
    def braintrace_plugin_info(self):
        """Who provides this family, and which names it exports."""
        return PluginInfo(
            family="@NAME@",
            api=(1, 0),
            distribution="braintrace-@DASHED@",
            version=__version__,
            exports={"ops": ("@NAME@",)},
        )

    @hookimpl
    def braintrace_primitives(self, api):
        """The primitives of this family."""
        return (SINGLE, BATCHED)

    @hookimpl
    def braintrace_conformance_cases(self, api):
        """Examples for the conformance tests."""
        from ._cases import CASES

        return CASES


plugin = Plugin()
'''

CASES = '''\
"""Examples of the operation for the conformance tests."""

import jax
from braintrace.testing import ConformanceCase

from ._ops import @NAME@
from ._primitives import BATCHED, SINGLE


def _operands(*batch):
    def make(seed, dtype):
        of_x, of_weight = jax.random.split(jax.random.key(seed))
        return (
            jax.random.normal(of_x, (*batch, 4), dtype),
            jax.random.normal(of_weight, (4,), dtype),
        )

    return make


CASES = (
    ConformanceCase(SINGLE, _operands(), @NAME@),
    ConformanceCase(BATCHED, _operands(3), @NAME@),
)
'''

TEST_CONFORMANCE = '''\
"""What braintrace expects of every plugin."""

from braintrace.testing import parametrize_with_checks

from braintrace_@NAME@._plugin import plugin


@parametrize_with_checks(plugin)
def test_conformance(check):
    check()
'''

TEST_TRAINING = '''\
"""The operation in a recurrent cell."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import pytest


class Cell(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = brainstate.ParamState(jnp.full(3, 0.1))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 3)))

    def reset_state(self, batch_size=None):
        self.h.value = jnp.zeros((batch_size, 3))

    def update(self, x):
        y = braintrace.@NAME@(x, self.weight.value)
        self.h.value = jnp.tanh(y + 0.5 * self.h.value)
        return self.h.value


def test_training_lowers_the_loss():
    xs = jax.random.normal(jax.random.key(0), (6, 4, 3))
    ys = jnp.tanh(jnp.cumsum(xs, axis=0))
    learner = braintrace.compile(Cell(), "d_rtrl", xs[0], batch_size=4)
    losses = []
    for _ in range(10):
        learner.reset_state(4, model_states=True)
        grads, values = learner.etrace_grad(
            xs, ys, step_fn=lambda x, y: jnp.mean((learner(x) - y) ** 2), return_value=True
        )
        losses.append(float(values.mean()))
        for path, state in learner.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, grads[path])
    assert losses[-1] < 0.95 * losses[0]


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="@NAME@: x must have shape"):
        braintrace.@NAME@(jnp.ones(3), jnp.ones(4))
'''

CI = """\
name: tests
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    strategy:
      matrix:
        python: ["3.11", "3.13"]
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: ${{ matrix.python }}
      - run: python -m pip install build
      - run: python -m build
      - run: python -m pip install dist/*.whl pytest
      - run: python -m pytest
      - run: braintrace doctor @NAME@
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "src/braintrace_@NAME@/__init__.py": INIT,
    "src/braintrace_@NAME@/_ops.py": OPS,
    "src/braintrace_@NAME@/_primitives.py": PRIMITIVES,
    "src/braintrace_@NAME@/_plugin.py": PLUGIN,
    "src/braintrace_@NAME@/_cases.py": CASES,
    "src/braintrace_@NAME@/py.typed": "",
    "tests/test_conformance.py": TEST_CONFORMANCE,
    "tests/test_training.py": TEST_TRAINING,
    ".github/workflows/tests.yml": CI,
}
