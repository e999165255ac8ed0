# SPDX-License-Identifier: Apache-2.0
"""Primitives are one object each through reload, copies, pickles and new processes."""

from __future__ import annotations

import pytest

LEARNER = """
    import warnings
    import brainstate, braintrace, jax.numpy as jnp
    from braintrace._primitive import find_primitive

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
    names = ["_primitives", "_ops", "_layers", "_cells", "nn", "_plugin"]
    modules = [importlib.import_module(f"braintrace_dense.{name}") for name in names]
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


def test_deepcopy_and_pickle_of_specifications_in_use(run):
    code = """
    import copy, pickle
    primitives = list(braintrace.ETP_PRIMITIVES)
    copied, pickled = copy.deepcopy(primitives), pickle.loads(pickle.dumps(primitives))
    same = [a is b is c for a, b, c in zip(primitives, copied, pickled)]
    out([all(same), len(same) > 0, compute() == before])
    """
    assert run(LEARNER + code) == [True, True, True]


def test_a_copied_model_compiles_to_the_same(run):
    code = """
    import copy
    twin = braintrace.compile(copy.deepcopy(learner.model), "d_rtrl", jnp.ones((4, 2)),
                              batch_size=4)
    out(gradient(twin) == before)
    """
    assert run(LEARNER + code) is True


WORKER = """
import multiprocessing, pickle, sys
from brainstate.random import seed_context

def work(primitives):
    import brainstate, braintrace, jax, jax.numpy as jnp
    from braintrace._primitive import find_primitive
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
        from braintrace._primitive import find_primitive
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
        from braintrace._primitive import find_primitive
        jax.make_jaxpr(jax.vmap(batchy.op, (0, None)))(jnp.ones((3, 2)), jnp.ones(2))
        out(base64.b64encode(pickle.dumps(find_primitive("batchy_p_batched"))).decode())
    """
    load = f"""
        import base64, pickle
        from braintrace._primitive import find_primitive
        found = pickle.loads(base64.b64decode({run(dump, site)!r}))
        out([found.name, found is find_primitive(found.name), found.spec.batched])
    """
    assert run(load, site) == ["batchy_p_batched", True, True]


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
