# SPDX-License-Identifier: Apache-2.0
"""Importing braintrace imports nothing; names resolve on first use."""

from __future__ import annotations

import runpy
from pathlib import Path

HEAVY = ["jax", "brainstate", "pluggy", "packaging", "importlib.metadata", "importlib_metadata"]


def test_import_imports_nothing(run):
    code = f"import braintrace; out([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == []


def test_import_adds_few_modules(run):
    code = "before = set(sys.modules); import braintrace; out(sorted(set(sys.modules) - before))"
    light = {"__future__", "braintrace", "importlib", "warnings"}
    assert {name.partition(".")[0] for name in run(code)} <= light


def test_import_is_quick(run):
    code = """
        import time
        start = time.perf_counter()
        import braintrace
        out(time.perf_counter() - start)
    """
    assert min(run(code) for _ in range(5)) < 0.020


def test_records_import_no_plugin(run):
    code = f"""
        import braintrace
        states = [r.state for r in braintrace.plugins.records()]
        heavy = [m for m in {HEAVY[:3]} if m in sys.modules]
        out([states, heavy, "braintrace_dense" in sys.modules])
    """
    states, heavy, dense = run(code)
    assert set(states) == {"discovered"} and heavy == [] and not dense


def test_an_operation_needs_no_parser_of_requirements(run):
    code = """
        import brainstate
        before = "packaging.requirements" in sys.modules
        import braintrace
        braintrace.matmul
        out([before, "packaging.requirements" in sys.modules])
    """
    before, after = run(code)
    assert before or not after


def test_loading_every_plugin_initialises_no_backend(run):
    code = """
        import braintrace
        braintrace.plugins.load_all(strict=True)
        from jax._src import xla_bridge
        out(xla_bridge.backends_are_initialized())
    """
    assert run(code) is False


def test_one_device_needs_nothing_of_several(run):
    code = """
        import braintrace, jax.numpy as jnp, sys
        learner = braintrace.compile(braintrace.nn.GRUCell(2, 2), "d_rtrl", jnp.ones(2))
        learner.etrace_grad(jnp.ones((2, 2)), step_fn=lambda x: learner(x).sum())
        own = "learners.placing learners.by_hand drivers.by_device".split()
        of_several = [*(f"braintrace.{n}" for n in own), "jax.experimental.multihost_utils"]
        out([name for name in of_several if name in sys.modules])
    """
    assert run(code) == []


def test_the_stubs_are_written_from_the_table_of_names():
    """``python3 dev.py stubs`` writes them."""
    root = Path(__file__).resolve().parents[2]
    for name, text in runpy.run_path(str(root / "dev.py"))["stub_texts"]().items():
        assert (root / "core" / "src" / "braintrace" / name).read_text() == text


def test_the_former_name_of_the_algorithms_says_so(run):
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            from braintrace.rules import LearningRule
            from braintrace import rules
        from braintrace.algorithms import LearningRule as same
        texts = [str(w.message) for w in said if w.category is DeprecationWarning]
        out([texts, [w.filename for w in said], LearningRule is same])
    """
    text = "braintrace.rules is called braintrace.algorithms now"
    assert run(code) == [[text], ["<string>"], True]  # the user's own line, so that it is shown


# --- braintrace.testing is a distribution of its own -------------------------------------------
