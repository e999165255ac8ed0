# SPDX-License-Identifier: Apache-2.0
"""Options of learners: those there are, by name, and those without an effect."""

from __future__ import annotations

import inspect
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.executor.graph_executor import compile_options
from braintrace.learners.options import checked_options, options_of
from tests import zoo
from tests.unit.learners.bench import BATCH, IN, Mixed


def test_unknown_learner_options_are_named() -> None:
    with pytest.raises(TypeError, match="decay"):
        bt.compile(Mixed(), "d_rtrl", jnp.ones((BATCH, IN)), batch_size=BATCH, decay=0.9)


def test_an_unknown_option_is_named_at_once() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'frozn'; options .*'frozen'"):
        bt.D_RTRL(zoo.Leaky(), frozn=())


def test_options_of_every_base_are_listed() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'trace_dtyp'; .*D_RTRL.*'trace_dtype'"):
        bt.compile(zoo.Leaky(), "d_rtrl", trace_dtyp="float32")
    with pytest.raises(TypeError, match=r"unknown option 'decay_or_rank'; options of D_RTRL are"):
        bt.compile(zoo.Leaky(), "d_rtrl", decay_or_rank=0.5)


X = jnp.ones((2, zoo.IN))


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


@pytest.mark.parametrize(
    ("algorithm", "option"),
    [
        ("D_RTRL", {"fast_solve": False}),
        (bt.D_RTRL, {"chunked_trace": True}),
        (bt.SnAp, {"snap_max_jacobian_elements": 100}),
    ],
)
def test_options_without_an_effect_are_a_warning(algorithm: Any, option: Any) -> None:
    with pytest.warns(UserWarning, match=f"the option {next(iter(option))} .* has no effect"):
        compiled(algorithm, **option)


LEARNERS = [
    getattr(bt, name)
    for name in "D_RTRL pp_prop EProp OSTLRecurrent OSTLFeedforward SnAp RTRL UORO ThreeFactor DNI "
    "ETraceVjpAlgorithm ETraceAlgorithm".split()
]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_a_signature_shows_every_option(learner: type) -> None:
    shown = inspect.signature(learner).parameters
    kinds = {p.kind for p in shown.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert {"model", "name"} | compile_options() - {"recurrence_scope"} <= {*shown}
    assert learner is bt.ETraceAlgorithm or "vjp_method" in shown


def test_a_signature_of_a_subclass_and_of_a_learner() -> None:
    class Own(bt.D_RTRL):
        def __init__(self, model: Any, depth: int, **options: Any) -> None:
            super().__init__(model, **options)

    names = [*inspect.signature(Own).parameters]
    assert names[:2] == ["model", "depth"] and "recurrence_scope" in names
    assert [*inspect.signature(compiled("d_rtrl")).parameters] == ["args", "kwargs"]


class Deep(bt.D_RTRL):
    """A learner of a user's, with an option of its own."""

    def __init__(self, model: Any, depth: int = 1, **options: Any) -> None:
        super().__init__(model, **options)


def test_options_of_a_class_and_of_its_bases() -> None:
    found = options_of(Deep)
    assert [*found][:2] == ["depth", "recurrence_scope"] and found["depth"].default == 1
    assert "model" not in found and "vjp_method" in found


def test_options_that_are_left_for_compiling() -> None:
    with pytest.warns(UserWarning, match="the option fast_solve of braintrace 0.2 has no effect"):
        assert checked_options(Deep, {"frozen": (), "fast_solve": True}) == {"frozen": ()}
    with pytest.raises(TypeError, match=r"unknown option 'frozn'; options of Deep are \['config'"):
        checked_options(Deep, {"frozn": ()})


def test_a_class_without_further_options_shows_its_own() -> None:
    class Bare(bt.D_RTRL):
        def __init__(self, model: Any, depth: int) -> None:
            super().__init__(model)

    assert [*inspect.signature(Bare).parameters] == ["model", "depth"]
