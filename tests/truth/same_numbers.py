# SPDX-License-Identifier: Apache-2.0
"""Whether a refactoring changed a number.

    python tests/truth/same_numbers.py save FILE [WORD]     on the tree before
    python tests/truth/same_numbers.py compare FILE [WORD]  on the tree after

``save`` runs a list of cases (a model, a learning rule, a driver, a kind of batch), all in float64,
and stores gradients or new weights, losses, hidden states and traces, with a digest of the program
that made them. Beside FILE it saves some learners, which ``compare`` restores. ``compare`` prints,
for each case, ``bit`` if all is equal to the last bit, or else the largest relative error, and
whether the program is the same. The exit status is 1 when a case of the same program is not equal
to the last bit, or one of another program differs by more than 1e-12, or a case or one of its
arrays is missing. With WORD, only cases with that in their name count.

Both must run on the same machine with the same versions of the libraries. Names are public ones, so
that the same file runs on both trees.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import brainstate
import jax
import numpy as np
import optax
import saiunit as u
from jax.extend import core as jax_core
from table import ADAM, DRIVERS, Case, Job, Run, cases, prepared, updated

jax.config.update("jax_disable_most_optimizations", True)  # a hundred small programs

TOLERANCE = 1e-12

#: A leaf is judged by its largest entry, or by this share of the largest of its case.
FLOOR = 1e-3


RESTORED = [
    Case("two-layers", "d_rtrl"),
    Case("gru", "pp_prop"),
    Case("neurons-alif", "eprop", batch="vmap"),
    Case("vanilla", "snap-2-step"),
    Case("vanilla", "uoro"),
]


class Result(NamedTuple):
    """Arrays by name, and the digest of the program."""

    arrays: dict[str, np.ndarray]
    digest: str


def result_of(job: Job, run: Run) -> Result:
    """What a driver returns and leaves behind."""
    program = brainstate.transform.jit(run)
    found = {**program(), **standing(job)}
    return Result(flat(found), digest(program.stateful_fun.get_jaxpr()))


def outcome(case: Case) -> Result:
    """The result of a case."""
    job = prepared(case)
    return result_of(job, DRIVERS[case.driver](job))


def standing(job: Job) -> dict[str, Any]:
    """Hidden states and traces."""
    learner, traces = job.learner, {}
    for path in learner.param_states:
        try:
            traces[path] = learner.get_etrace_of(path)
        except KeyError:
            continue  # a parameter without a trace
    hidden = {path: state.value for path, state in learner.hidden_states.items()}
    return {"traces": traces, "hidden": hidden}


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def restored(case: Case, file: Path, save: bool) -> Result:
    """A learner after an update, from the file if it is not to be saved, and its next update."""
    job = prepared(case, seed=0 if save else 1)
    run = updated(job, ADAM, update_every=2)
    if save:
        run()
        job.learner.save(file, ADAM)
    else:
        job.learner.restore(file, ADAM)
    start = flat({"start": {"weights": job.weights(), **standing(job)}})
    after = result_of(job, run)
    return Result({**start, **after.arrays}, after.digest)


# --- programs -----------------------------------------------------------------------------------


def digest(program: Any) -> str:
    """Of a jaxpr, up to names of variables and functions, and places in the source."""
    consts = getattr(program, "consts", ())
    jaxpr = getattr(program, "jaxpr", program)
    numbers: dict[Any, int] = {}

    def named(variables: Any) -> str:
        return ",".join(
            f"{np.asarray(v.val).tolist()}:{v.aval}"
            if isinstance(v, jax_core.Literal)
            else f"v{numbers.setdefault(v, len(numbers))}:{v.aval}"
            for v in variables
        )

    lines = [named(jaxpr.constvars), named(jaxpr.invars), *map(shown, consts)]
    for eqn in jaxpr.eqns:
        lines.append(named(eqn.invars))
        lines.append(f"{eqn.primitive.name} {shown(eqn.params)} {named(eqn.outvars)}")
    lines.append(named(jaxpr.outvars))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def shown(value: Any) -> str:
    """A parameter of an equation, or a constant, as text that is the same in every process."""
    if isinstance(value, jax_core.Jaxpr | jax_core.ClosedJaxpr):
        return digest(value)
    if isinstance(value, dict):
        return str([(key, shown(value[key])) for key in sorted(value, key=str) if key != "name"])
    if type(value) in (tuple, list):
        return str([*map(shown, value)])
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        content = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        return f"{array.dtype}{array.shape}{content}"
    text = repr(value)
    return type(value).__name__ if callable(value) or " at 0x" in text else text


# --- save and compare ---------------------------------------------------------------------------


def results(file: Path, save: bool, word: str) -> Iterator[tuple[str, Result]]:
    """All cases whose names have a word in them.

    The first program of a process can have its equations in another order than when it is traced
    again, so one is made in vain.
    """
    outcome(Case("mini-gru"))
    for case in cases():
        if word in str(case):
            yield str(case), outcome(case)
    for case in RESTORED:
        rule = case.rule.removesuffix("-step")  # which was the only one
        name = f"restored/{case.model}/{rule}"
        if word in name:
            beside = file.with_name(f"{file.stem}-{case.model}-{rule}.learner")
            yield name, restored(case, beside, save)


def versions() -> dict[str, str]:
    """What numbers may depend on besides this project."""
    modules = (jax, np, brainstate, u, optax)
    return {module.__name__: module.__version__ for module in modules}


def save(file: Path, word: str) -> int:
    """Store all results."""
    arrays, digests = {}, {}
    for name, result in results(file, True, word):
        wrong = [key for key, array in result.arrays.items() if not np.isfinite(array).all()]
        if wrong:
            raise FloatingPointError(f"{name}: {wrong} not finite")
        arrays |= {f"{name}|{key}": array for key, array in result.arrays.items()}
        digests[name] = result.digest
        print(name, flush=True)
    about = json.dumps({"digests": digests, "versions": versions()})
    np.savez(file, about=np.array(about), **arrays)
    print(f"{len(digests)} cases, {len(arrays)} arrays")
    return 0


def compare(file: Path, word: str) -> int:
    """Print how the results of now differ from those stored, and whether that is allowed."""
    with np.load(file) as stored:
        arrays = {key: stored[key] for key in stored.files}
    about = json.loads(str(arrays.pop("about")))
    if about["versions"] != versions():
        print(f"stored with {about['versions']}, compared with {versions()}")
    missing = {name for name in about["digests"] if word in name}
    wrong = count = 0
    for name, result in results(file, False, word):
        count += 1
        before = {
            key.partition("|")[2]: array
            for key, array in arrays.items()
            if key.partition("|")[0] == name
        }
        same = about["digests"].get(name) == result.digest
        error = difference(before, result.arrays) if name in missing else "not stored"
        bad = isinstance(error, str) or error > (0.0 if same else TOLERANCE)
        words = error if isinstance(error, str) else f"{error:.1e}" if error else "bit"
        print(f"{words:8} {'' if same else 'other jaxpr':12}{'WRONG ' if bad else ''}{name}")
        sys.stdout.flush()
        missing.discard(name)
        wrong += bad
    for name in sorted(missing):
        print(f"missing {name}")
    print(f"{count} cases, {wrong} wrong, {len(missing)} missing")
    return 1 if wrong or missing else 0


def difference(before: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> float | str:
    """Zero if all is equal to the last bit; else the largest relative error, or what is wrong."""
    if before.keys() != now.keys():
        return f"other arrays: {sorted(before.keys() ^ now.keys())}"
    largest = max((size_of(array) for array in before.values()), default=0.0)
    error = 0.0
    for key, old in before.items():
        new = now[key]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            return f"{key}: {old.dtype}{old.shape} became {new.dtype}{new.shape}"
        if old.tobytes() != new.tobytes():
            apart = size_of(np.asarray(new, float) - np.asarray(old, float))
            scale = max(size_of(old), FLOOR * largest, np.finfo(float).tiny)
            here = max(apart / scale, np.finfo(float).tiny)  # a sign of zero counts, too
            error = max(error, here if np.isfinite(here) else np.inf)
    return error


def size_of(array: np.ndarray) -> float:
    """The largest absolute value."""
    return float(np.abs(np.asarray(array, float)).max(initial=0.0))


def main(arguments: list[str]) -> int:
    """Run a command of the module's docstring."""
    commands = {"save": save, "compare": compare}
    if len(arguments) not in (2, 3) or arguments[0] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    command, file, word = [*arguments, ""][:3]
    start = time.process_time()
    with warnings.catch_warnings(), brainstate.environ.context(precision=64, dt=0.5 * u.ms):
        warnings.simplefilter("ignore")
        status = commands[command](Path(file), word)
    print(f"{time.process_time() - start:.0f} s of the processor")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
