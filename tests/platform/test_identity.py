# SPDX-License-Identifier: Apache-2.0
"""Primitives are one object each through reload, copies, pickles and new processes."""

from __future__ import annotations

import pickle
import textwrap

import pytest

import braintrace

LEARNER = """
    import warnings
    import brainstate, braintrace, jax.numpy as jnp
    from braintrace.ops.primitive import find_primitive

    def learner_and_gradient():
        with brainstate.random.seed_context(0):
            cell = braintrace.nn.GRUCell(2, 3)
        learner = braintrace.compile(cell, "d_rtrl", jnp.ones((4, 2)), batch_size=4)
        return learner, lambda: gradient(learner)

    def gradient(learner):
        learner.reset_state(batch_size=4, model_states=True)
        grads = learner.etrace_grad(jnp.ones((5, 4, 2)), step_fn=lambda x: learner(x).sum())
        return [float(abs(leaf).sum()) for leaf in jax.tree.leaves(grads)]

    import jax
    learner, compute = learner_and_gradient()
    before = compute()
"""


def test_reload_of_a_plugin(run):
    code = """
    import importlib
    primitive = find_primitive("etp_mm")
    braintrace.nn.Linear
    names = [name for name in sys.modules if name.startswith("braintrace_dense.")]
    first = ["braintrace_dense._primitives", "braintrace_dense._ops"]
    # what a module imports stands behind it, and the plugin object comes last
    layers = [n for n in reversed(names) if n not in first and not n.endswith("._plugin")]
    modules = [sys.modules[n] for n in (*first, *layers, "braintrace_dense._plugin")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for module in modules:
            importlib.reload(module)
        importlib.reload(sys.modules["braintrace_dense"])
        importlib.reload(braintrace)
        again = compute()
        learner, compute = learner_and_gradient()
        anew = compute()
    texts = [str(w.message) for w in caught if "are replaced" in str(w.message)]
    out([find_primitive("etp_mm") is primitive, again == before, anew == before, texts])
    """
    same, again, anew, texts = run(LEARNER + code)
    assert (same, again, anew) == (True, True, True)
    assert len(texts) == len(set(texts)) and any("'etp_mm'" in text for text in texts)


def test_reload_of_the_registry(run):
    code = """
    import importlib
    primitive = find_primitive("etp_mm")
    importlib.reload(braintrace.ops.primitive)
    again = compute()
    same = braintrace.ops.primitive.find_primitive("etp_mm") is primitive
    learner, compute = learner_and_gradient()
    out([same, braintrace.ops.primitive.is_etp_primitive(primitive), again == before,
         compute() == before])
    """
    assert run(LEARNER + code) == [True, True, True, True]


def test_deepcopy_and_pickle_of_specifications_in_use(run):
    code = """
    import copy, pickle
    primitives = list(braintrace.ETP_PRIMITIVES)
    copied, pickled = copy.deepcopy(primitives), pickle.loads(pickle.dumps(primitives))
    same = [a is b is c for a, b, c in zip(primitives, copied, pickled)]
    out([all(same), len(same) > 0, compute() == before])
    """
    assert run(LEARNER + code) == [True, True, True]


@pytest.mark.parametrize("first", ["whole", "in a trace"])
def test_a_copied_learner_works_by_itself(run, first):
    code = f"""
    import copy
    gradient(learner)
    learner(jnp.ones((4, 2)))
    twin = copy.deepcopy(learner)
    traces = lambda learner: [jnp.asarray(v) for t in learner.traces for v in t.value.values()]
    same = all((a == b).all() for a, b in zip(traces(learner), traces(twin)))
    if {first == "in a trace"}:
        brainstate.transform.jit(twin)(jnp.ones((4, 2)))
    apart = twin.model is not learner.model and twin.executor.model is twin.model
    for state in twin.param_states.values():
        state.value = jax.tree.map(lambda v: 2 * v, state.value)
    unlike, kept = gradient(twin), gradient(learner)
    for state in twin.param_states.values():
        state.value = jax.tree.map(lambda v: v / 2, state.value)
    out([same, apart, unlike != before, kept == before, gradient(twin) == before])
    """
    assert run(LEARNER + code) == [True] * 5


def test_copied_models_compile_to_the_same(run):
    """A model alone, and one that holds a learner."""
    code = """
    import copy
    class Holder(brainstate.nn.Module):
        def __init__(self, learner):
            super().__init__()
            self.learner = learner
    held = copy.deepcopy(Holder(learner)).learner
    anew = braintrace.compile(copy.deepcopy(learner.model), "d_rtrl", jnp.ones((4, 2)),
                              batch_size=4)
    out([held.model is not learner.model, gradient(held) == before, gradient(anew) == before,
         compute() == before])
    """
    assert run(LEARNER + code) == [True] * 4


def test_a_learner_says_why_it_cannot_be_pickled():
    with pytest.raises(TypeError, match=r"brainstate states cannot be pickled.* copy\.deepcopy"):
        pickle.dumps(braintrace.D_RTRL(braintrace.nn.GRUCell(2, 3)))


WORKER = """
import multiprocessing, pickle, sys
from brainstate.random import seed_context

def work(primitives):
    import brainstate, braintrace, jax, jax.numpy as jnp
    from braintrace.ops.primitive import find_primitive
    same = all(p is find_primitive(p.name) for p in primitives)
    with seed_context(0):
        cell = braintrace.nn.GRUCell(2, 3)
    learner = braintrace.compile(cell, "d_rtrl", jnp.ones((4, 2)), batch_size=4)
    grads = learner.etrace_grad(jnp.ones((5, 4, 2)), step_fn=lambda x: learner(x).sum())
    return same, [float(abs(leaf).sum()) for leaf in jax.tree.leaves(grads)]

if __name__ == "__main__":
    import braintrace
    braintrace.plugins.load_all(strict=True)
    primitives = list(braintrace.ETP_PRIMITIVES)
    _, here = work(primitives)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        same, there = pool.apply(work, (primitives,))
    print("OUT", same, here == there, len(primitives) > 2)
"""


def test_a_spawned_worker(tmp_path, script):
    assert script(tmp_path / "work.py", WORKER) == "OUT True True True"


def test_a_pickle_loads_the_plugin_that_owns_the_primitive(run):
    saved = run("""
        import base64, pickle, braintrace, jax, jax.numpy as jnp
        from braintrace.plugin_api import ETPPrimitiveSpec, bind
        from braintrace.ops.primitive import find_primitive
        braintrace.plugins.load_all()
        out(base64.b64encode(pickle.dumps(find_primitive("etp_mm"))).decode())
    """)
    code = f"""
        import base64, pickle
        data = base64.b64decode({saved!r})
        try:
            out([pickle.loads(data).name, ""])
        except Exception as error:
            out(["", str(error)])
    """
    assert run(code) == ["etp_mm", ""]
    _, text = run(code, env={"BRAINTRACE_DISABLE_PLUGINS": "dense"})
    assert text.startswith("the primitive 'etp_mm' is provided by 'braintrace-dense' 0.1.0, which")


def test_a_derived_batched_primitive_is_pickled_by_its_origin(site, run, plugin_source):
    site.add("batchy", "batchy", plugin_source("batchy", "batchy_p"), family="batchy")
    dump = """
        import base64, pickle, batchy, jax, jax.numpy as jnp
        from braintrace.ops.primitive import find_primitive
        jax.make_jaxpr(jax.vmap(batchy.op, (0, None)))(jnp.ones((3, 2)), jnp.ones(2))
        out(base64.b64encode(pickle.dumps(find_primitive("batchy_p_batched"))).decode())
    """
    load = f"""
        import base64, pickle
        from braintrace.ops.primitive import find_primitive
        found = pickle.loads(base64.b64decode({run(dump, site)!r}))
        out([found.name, found is find_primitive(found.name), found.spec.batched])
    """
    assert run(load, site) == ["batchy_p_batched", True, True]


def test_a_pickle_imports_the_package_that_registers_its_primitive(site, run):
    text = """
        from braintrace import register_primitive

        def scale(x, w):
            return x * w

        scale_p = register_primitive("own_scale", scale)
    """
    site.add("own-scale", "own_scale_module", textwrap.dedent(text))
    saved = run(
        """
        import base64, pickle, own_scale_module
        out(base64.b64encode(pickle.dumps(own_scale_module.scale_p)).decode())
    """,
        site,
    )
    load = f"""
        import base64, pickle, sys
        found = pickle.loads(base64.b64decode({saved!r}))
        out([found.name, found is sys.modules["own_scale_module"].scale_p])
    """
    assert run(load, site) == ["own_scale", True]


@pytest.fixture
def script():
    """Run a file in a fresh interpreter; its last line."""
    import subprocess
    import sys

    def run_file(path, text):
        path.write_text(text)
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    return run_file
