# SPDX-License-Identifier: Apache-2.0
"""A learner that was saved goes on elsewhere as if nothing had happened, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import braintrace as bt
from braintrace.files import save, storage
from braintrace.files.save import restore_learner, save_learner

UNITS, BATCH, STEPS = 6, 2, 3
OPTIONS: dict[str, dict[str, Any]] = {"d_rtrl": {}, "pp_prop": {"decay_or_rank": 0.9}}


# --- a stream: noise in the model, inputs drawn from the random state, an optimizer ---------------


class Noisy(brainstate.nn.Module):
    """Leaky units with dropout, noise, a counter, and a generator of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.drive, self.readout = bt.nn.Linear(3, 4), bt.nn.Linear(4, 2)
        self.dropout = brainstate.nn.Dropout(0.7)
        self.generator = brainstate.random.RandomState(7)
        self.seen = brainstate.ShortTermState(jnp.zeros((), jnp.int32))

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.full((batch_size, 4), 0.1))

    def update(self, x: Any) -> Any:
        self.seen.value = self.seen.value + 1
        noise = self.generator.normal(0.0, 0.1, self.h.value.shape)
        self.h.value = jnp.tanh(0.8 * self.h.value + self.dropout(self.drive(x)) + noise)
        return self.readout(self.h.value) + brainstate.random.normal(0.0, 0.1, (BATCH, 2))


class Adam(brainstate.nn.Module):
    """An optimizer of optax with its state in a state."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights, self.optax = weights, optax.adam(0.01)
        self.state = brainstate.ShortTermState(self.optax.init(self.values()))

    def values(self) -> Any:
        return {path: weight.value for path, weight in self.weights.items()}

    def update(self, grads: Any) -> None:
        values = self.values()
        steps, self.state.value = self.optax.update(grads, self.state.value, values)
        for path, value in optax.apply_updates(values, steps).items():
            self.weights[path].value = value


class Stream:
    """A learner that learns; a unit of work is a block of steps or a single one."""

    def __init__(self, algorithm: str, by: str, seed: int = 0) -> None:
        brainstate.random.seed(seed)
        self.learner = bt.compile(
            Noisy(), algorithm, jnp.ones((BATCH, 3)), batch_size=BATCH, **OPTIONS[algorithm]
        )
        self.optimizer = Adam(self.learner.param_states)
        self.work = brainstate.transform.jit(self._block if by == "block" else self._step)

    def _loss(self, x: Any) -> Any:
        return jnp.mean((self.learner(x) - x[:, :2]) ** 2)

    def _block(self) -> Any:
        xs = brainstate.random.randn(STEPS, BATCH, 3)
        grads, losses = self.learner.etrace_grad(
            xs, step_fn=self._loss, return_value=True, block_size=2
        )
        self.optimizer.update(grads)
        return losses.mean()

    def _step(self) -> Any:
        grad = brainstate.transform.grad(self._loss, self.learner.param_states, return_value=True)
        grads, loss = grad(brainstate.random.randn(BATCH, 3))
        self.optimizer.update(grads)
        return loss

    def go_on(self, units: int) -> list[bytes]:
        return [np.asarray(self.work()).tobytes() for _ in range(units)]

    def save(self, path: Path) -> bytes:
        save_learner(self.learner, path, self.optimizer)
        return path.read_bytes()

    def restore(self, path: Path) -> None:
        restore_learner(self.learner, path, self.optimizer)


@dataclass(frozen=True)
class Uninterrupted:
    """A run from its start: losses of its units of work, and what was saved before and after."""

    stream: Stream
    losses: list[bytes]
    files: list[bytes]


@cache
def uninterrupted(algorithm: str, by: str, folder: Path) -> Uninterrupted:
    stream = Stream(algorithm, by)
    files, losses = [stream.save(folder / f"{algorithm}-{by}-0")], []
    for i in range(UNITS):
        losses += stream.go_on(1)
        files.append(stream.save(folder / f"{algorithm}-{by}-{i + 1}"))
    return Uninterrupted(stream, losses, files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(autouse=True)
def training() -> Any:
    with brainstate.environ.context(fit=True):
        yield


@pytest.mark.parametrize(
    ("algorithm", "by", "anew"),
    [
        ("d_rtrl", "block", False),
        ("d_rtrl", "step", True),
        ("pp_prop", "block", False),
        ("pp_prop", "step", False),
    ],
)
def test_a_stream_that_stops_anywhere_goes_on_bit_for_bit(algorithm, by, anew, folder, tmp_path):
    run = uninterrupted(algorithm, by, folder)
    assert len({*run.losses}) == UNITS and len({*run.files}) == UNITS + 1
    stream = Stream(algorithm, by, seed=1) if anew else run.stream
    choice = np.random.default_rng(len(algorithm) + len(by))
    for stop in choice.permutation(UNITS):
        stream.restore(folder / f"{algorithm}-{by}-{stop}")
        end = int(choice.integers(stop, UNITS)) + 1
        assert stream.go_on(end - int(stop)) == run.losses[stop:end]
        assert stream.save(tmp_path / "again") == run.files[end]


def test_a_stream_goes_on_in_a_new_process_bit_for_bit(folder, tmp_path):
    run = uninterrupted("pp_prop", "block", folder)
    start, end = folder / "pp_prop-block-2", tmp_path / "end"
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONHASHSEED": "11"}
    done = subprocess.run(
        [sys.executable, __file__, "pp_prop", "block", str(start), str(end)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [loss.hex() for loss in run.losses[2:]]
    assert end.read_bytes() == run.files[-1]


def resume(algorithm: str, by: str, start: str, end: str) -> None:
    """Go on from a file to the end of a run, and save again; in a process of its own."""
    stream = Stream(algorithm, by, seed=2)
    stream.restore(Path(start))
    print(json.dumps([loss.hex() for loss in stream.go_on(UNITS - 2)]))
    stream.save(Path(end))


# --- values ---------------------------------------------------------------------------------------


class Cell(brainstate.nn.Module):
    """A leaky layer, and states that its step does not use."""

    def __init__(self, units: int = 4, batch: int = 2, **more: Any) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, units)))
        self.h = brainstate.HiddenState(jnp.zeros((batch, units)))
        self.more = {name: brainstate.State(value) for name, value in more.items()}

    def update(self, x: Any) -> Any:
        rate = brainstate.environ.get("dt", 0.1)
        self.h.value = (1.0 - rate) * self.h.value + bt.matmul(x, self.w.value)
        return self.h.value


def learner_of(model: Any = None, kind: Callable[..., Any] = bt.D_RTRL, **options: Any) -> Any:
    if kind in (bt.D_RTRL, bt.pp_prop):
        options = {"downstream": "step", **options}
    learner = kind(Cell() if model is None else model, **options)
    learner.compile_graph(jnp.ones((learner.model.h.value.shape[0], 3)))
    return learner


def ones_like(value: Any) -> Any:
    """Another value of the same type, for a state that is to be restored."""
    return jnp.ones(jnp.shape(value), jnp.result_type(value))


VALUES: dict[str, Any] = {
    "float32": lambda: jnp.array([1.5, -0.0, jnp.nan], jnp.float32),
    "float64": lambda: jnp.array([[1.0 / 3.0]], jnp.float64),
    "bfloat16": lambda: jnp.array([1.5, -2.25], jnp.bfloat16),
    "float16": lambda: jnp.array(0.1, jnp.float16),
    "float8": lambda: jnp.array([0.5, 448.0], jnp.float8_e4m3fn),
    "int4": lambda: jnp.array([-8, 7, 1], jnp.int4),
    "uint8": lambda: jnp.arange(3, dtype=jnp.uint8),
    "bool": lambda: jnp.array([True, False]),
    "complex": lambda: jnp.array([1 + 2j, -0.0j], jnp.complex64),
    "empty": lambda: jnp.zeros((0, 3), jnp.int32),
    "weak": lambda: jnp.full((2, 2), 0.3),
    "weak scalar": lambda: jnp.asarray(0.1) * 3.0,
    "weak int": lambda: jnp.full((2,), 3),
    "number": lambda: 0.1,
    "int": lambda: 3,
    "flag": lambda: True,
    "numpy": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "numpy bfloat16": lambda: np.ones(2, jnp.bfloat16),
    "key": lambda: jax.random.key(3),
    "keys": lambda: jax.random.split(jax.random.key(3, impl="rbg"), 2),
    "raw key": lambda: jax.random.key_data(jax.random.key(4)),
    "tree": lambda: {"a": [jnp.ones(2), 1.0], "b": (jnp.zeros(1), None)},
    "optax": lambda: optax.adam(0.1).init({("a", 0): jnp.ones(2)}),
    "volt": lambda: jnp.array([1.0, 2.0]) * u.mV,
    "conductance": lambda: {"g": jnp.full((2,), 0.5) * (u.mS / u.cm**2), "e": 1.0 * u.volt**0.5},
    "unitless": lambda: u.Quantity(jnp.ones(2)),
    "nothing": lambda: None,
}


def bits(value: Any) -> Any:
    """Structure, and type and bytes of every leaf."""
    leaves, treedef = jax.tree.flatten(value)
    types = [(type(leaf), str(jax.typeof(leaf))) for leaf in leaves]
    return treedef, types, [storage.encoded(leaf).tobytes() for leaf in leaves]


def other(leaf: Any) -> Any:
    """Another value of the same shape and dtype."""
    if storage._is_key(leaf):
        return jax.random.wrap_key_data(
            jax.random.key_data(leaf) + 1, impl=jax.random.key_impl(leaf)
        )
    return jnp.zeros(jnp.shape(leaf), jax.typeof(leaf).dtype)


def test_values_of_every_type_come_back_bit_for_bit(tmp_path):
    values = {name: make() for name, make in VALUES.items()}
    learner = learner_of(Cell(**values))
    states = learner.model.more
    save_learner(learner, tmp_path / "file")
    for state in states.values():
        state.value = jax.tree.map(other, state.value)
    restore_learner(learner, tmp_path / "file")
    for name, value in values.items():
        assert bits(states[name].value) == bits(value), name


def test_traces_saved_in_half_precision_are_restored_in_the_dtype_they_have_now(tmp_path):
    """As files of earlier builds have them, for models in half precision."""

    def made() -> Any:
        cell = bt.nn.GRUCell(3, 4, w_init=lambda shape: jnp.full(shape, 0.1, "bfloat16"), key=0)
        return bt.compile(cell, "d_rtrl", jnp.ones((2, 3)), batch_size=2)

    old, new, path = made(), made(), tmp_path / "half.npz"
    for trace in old.traces:
        trace.value = jax.tree.map(lambda v: (v + 1.5).astype("bfloat16"), trace.value)
    old.save(path)
    new.restore(path)
    for trace in new.traces:
        for leaf in jax.tree.leaves(trace.value):
            assert leaf.dtype.itemsize >= 4 and bool((leaf == 1.5).all())
    for trace in new.traces:  # and not the other way round
        trace.value = jax.tree.map(lambda v: v.astype("bfloat16"), trace.value)
    made().save(path)
    with pytest.raises(ValueError, match="dtype float64 in the file, bfloat16 here"):
        new.restore(path)


def test_what_was_compiled_for_a_saved_state_fits_a_restored_one(tmp_path):
    learner = learner_of(Cell(**{name: make() for name, make in VALUES.items()}))
    read = jax.jit(lambda values: jax.tree.map(jnp.shape, values))

    def run() -> int:
        read({k: state.value for k, state in brainstate.graph.states(learner).items()})
        return read._cache_size()

    assert run() == 1
    save_learner(learner, tmp_path / "file")
    for state in learner.model.more.values():
        state.value = jax.tree.map(other, state.value)
    restore_learner(learner, tmp_path / "file")
    assert run() == 1


def test_restored_arrays_stay_on_the_device_of_those_before(tmp_path):
    device = jax.devices()[0]
    learner = learner_of(Cell(put=jax.device_put(jnp.ones(2), device), free=jnp.ones(2)))
    save_learner(learner, tmp_path / "file")
    restore_learner(learner, tmp_path / "file")
    put, free = (learner.model.more[name].value for name in ("put", "free"))
    assert put.committed and put.devices() == {device}
    assert not free.committed


def test_what_is_no_array_is_refused_by_name(tmp_path):
    learner = learner_of(Cell(label=np.array(["a"])))
    with pytest.raises(TypeError, match=r"model/more/label cannot be saved: a ndarray is no array"):
        save_learner(learner, tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_the_file_is_one_of_numpy(tmp_path):
    learner = learner_of(Cell(v=jnp.ones(2) * u.mV))
    save_learner(learner, tmp_path / "file.npz")
    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        manifest = json.loads(file["manifest.json"])
        assert np.array_equal(file["model/w"], learner.model.w.value)
        assert {*file.files} == {*manifest["arrays"], "manifest.json"}
    assert manifest["kinds"] == {
        "random/default": "random",
        "model/h": "hidden",
        "model/more/v": "other",
        "model/w": "param",
        "trace/0['weight']": "trace",
        "learner/running_index": "learner",
    }
    assert manifest["arrays"]["model/w"] == {
        "shape": [3, 4],
        "dtype": "float64",
        "weak_type": False,
        "held_as": "jax",
    }
    assert manifest["units"] == {"model/more/v": "mV = 1.0 * 10.0^-3.0 m^2 kg s^-3 A^-1"}
    assert manifest["braintrace"] == bt.__version__


def test_states_outside_of_the_model_and_of_a_learner_are_saved(tmp_path):
    outside = brainstate.State(jnp.zeros(()))

    class Counting(Cell):
        def update(self, x: Any) -> Any:
            outside.value = outside.value + 1.0
            return super().update(x)

    class Own(bt.D_RTRL):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.own = brainstate.ShortTermState(jnp.ones(2))

    learner = learner_of(Counting(), Own)
    outside.value = jnp.full_like(outside.value, 5.0)
    learner.own.value = learner.own.value * 3.0
    save_learner(learner, tmp_path / "file")
    outside.value, learner.own.value = outside.value * 0.0, learner.own.value * 0.0
    restore_learner(learner, tmp_path / "file")
    assert float(outside.value) == 5.0
    assert np.array_equal(learner.own.value, [3.0, 3.0])


# --- what is refused ------------------------------------------------------------------------------


class Layer(Cell):
    """Another class with the same states."""


def refusal(learner: Any, path: Path, optimizer: Any = None) -> list[str]:
    """What is said to differ; nothing may have changed."""
    before = [bits(s.value) for s in brainstate.graph.states(learner).values()]
    with pytest.raises(ValueError, match="nothing was restored") as caught:
        restore_learner(learner, path, optimizer)
    assert before == [bits(s.value) for s in brainstate.graph.states(learner).values()]
    lines = str(caught.value).splitlines()[1:]
    return [line.strip() for line in lines if line.startswith(" ")]  # behind them, a remedy


def test_a_file_of_another_learner_is_refused_with_all_differences(tmp_path):
    path = tmp_path / "file"
    more = {"a": jnp.ones(2), "b": jnp.ones(2) * u.mV, "c": jnp.ones(2, jnp.float32)}
    save_learner(learner_of(Cell(**more)), path)
    here = {"b": jnp.ones(2) * u.volt, "c": jnp.ones(3, jnp.int32), "d": 1.0, "e": jnp.ones(1)}
    model = Layer(units=5, **here)
    found = refusal(learner_of(model, bt.pp_prop, decay_or_rank=0.5), path)
    arrays = next(i for i, line in enumerate(found) if line.startswith("model/"))
    assert {
        "learner: D_RTRL in the file, pp_prop here",
        "learning rule: DRTRLRule in the file, IODimRule here",
        "learning rule decay_x: nothing in the file, 0.5 here",
        "model: Cell in the file, Layer here",
    } <= {*found[:arrays]}
    assert found[arrays:] == [
        "model/h: shape (2, 4) in the file, (2, 5) here",
        "model/more/b: unit mV in the file, V here",
        "model/more/c: shape (2,) in the file, (3,) here",
        "model/more/c: dtype float32 in the file, int32 here",
        "model/more/d: not in the file",
        "model/more/e: not in the file",
        "model/w: shape (3, 4) in the file, (3, 5) here",
        "trace/0: not in the file",
        "trace/1[0]: not in the file",
        "trace/2[0]: not in the file",
        "model/more/a: only in the file",
        "trace/0['weight']: only in the file",
    ]


@pytest.mark.parametrize(
    ("there", "here", "difference"),
    [
        (
            {"trace_dtype": None},
            {"trace_dtype": "float32"},
            [
                "option trace_dtype: None in the file, float32 here",
                "learning rule trace_dtype: None in the file, float32 here",
                "trace/0['weight']: dtype float64 in the file, float32 here",
            ],
        ),
        (
            {},
            {"control_flow": bt.ControlFlowPolicy()},
            ["option control_flow: nothing in the file, ControlFlowPolicy(*) here"],
        ),
        (
            {"recurrence_scope": "diagonal"},
            {"recurrence_scope": "coupled"},
            ["option recurrence_scope: 'diagonal' in the file, 'coupled' here"],
        ),
    ],
)
def test_other_options_are_refused(tmp_path, there, here, difference):
    save_learner(learner_of(**there), tmp_path / "file")
    found = refusal(learner_of(**here), tmp_path / "file")
    for expected in difference:
        start, _, end = expected.partition("*")
        assert any(line.startswith(start) and line.endswith(end) for line in found), found


def test_a_file_that_does_not_say_how_far_credit_goes_is_of_the_published_rule(
    tmp_path, monkeypatch
):
    path, known = tmp_path / "file", save.description_of
    with monkeypatch.context() as before:
        before.setattr(
            save,
            "description_of",
            lambda *of: {k: v for k, v in known(*of).items() if k != "option downstream"},
        )
        save_learner(learner_of(), path)
    restore_learner(learner_of(), path)
    found = refusal(learner_of(downstream="linear"), path)
    assert "option downstream: 'step' in the file, 'linear' here" in found
    with pytest.raises(ValueError, match="its learners go on with downstream='step'"):
        restore_learner(learner_of(downstream="linear"), path)
    assert "filter/0: not in the file" in found


def test_a_learner_without_filters_takes_files_of_both(tmp_path):
    x = jnp.ones((2, 3))
    learners = [
        bt.compile(bt.nn.GRUCell(3, 4, key=0), "d_rtrl", x, batch_size=2, downstream=how)
        for how in ("step", "linear")
    ]
    for there, here in (learners, learners[::-1]):
        save_learner(there, tmp_path / "file")
        restore_learner(here, tmp_path / "file")


def test_another_setting_of_the_environment_is_refused(tmp_path):
    with brainstate.environ.context(dt=0.1 * u.ms / u.ms):
        save_learner(learner_of(), tmp_path / "file")
    with brainstate.environ.context(dt=0.2):
        found = refusal(learner_of(), tmp_path / "file")
    assert found == ["setting dt: 0.1 in the file, 0.2 here"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((None, True, 0.1, "a"), "(None, True, 0.1, 'a')"),
        ({"policy": bt.DiagnosticLevel.WARNING}, "{'policy': WARNING}"),
        (jnp.dtype("bfloat16"), "bfloat16"),
        (np.float64(0.5), "0.5"),
        (jnp.asarray(3), "3"),
        (0.1 * u.ms, "0.1 ms = 1.0 * 10.0^-3.0 s"),
        (jnp.tanh, "tanh"),
        (Cell, "Cell"),
        (np.array("a"), "array('a', dtype='<U1')"),
        (jnp.arange(3, dtype="uint8"), "uint8[3] ae4b3280e56e2faf"),
        (jax.random.key(0), "key<fry>[] af5570f5a1810b7a"),
    ],
    ids=str,
)
def test_settings_and_options_are_described_in_the_same_words_everywhere(value, text):
    assert save._text(value) == text


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a file with a changed manifest."""
    copy = path.with_name("rewritten")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "manifest.json":
                manifest = json.loads(data)
                change(manifest)
                data = json.dumps(manifest).encode()
            new.writestr(name, data)
    return copy


def test_files_of_other_versions_are_refused(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    major, minor, *_ = bt.__version__.split(".")
    same = rewritten(path, lambda m: m.update(braintrace=f"{major}.{minor}.99"))
    restore_learner(learner, same)
    other = rewritten(path, lambda m: m.update(braintrace=f"{major}.{int(minor) + 1}.0"))
    expected = f"{major}.{int(minor) + 1}.0 in the file, {bt.__version__} here"
    assert refusal(learner, other) == [f"version of braintrace: {expected}"]
    newer = rewritten(path, lambda m: m.update(braintrace="9.1", format_version=2))
    with pytest.raises(ValueError, match=r"has the format version 2, written by braintrace 9\.1"):
        restore_learner(learner, newer)


def test_what_is_no_such_file_is_refused(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="file"):
        restore_learner(learner, path)
    path.write_text("text")
    with pytest.raises(ValueError, match="is not a file of a saved learner, or is truncated"):
        restore_learner(learner, path)
    with path.open("wb") as file:
        np.savez(file, w=np.ones(2))
    with pytest.raises(ValueError, match=r"is not a file of a saved learner: it has no manifest"):
        restore_learner(learner, path)
    save_learner(learner, path)
    for change in (
        lambda m: m.update(format="another"),
        lambda m: m.pop("arrays"),
        lambda m: m["arrays"].update(x=3),
        lambda m: m["arrays"]["model/w"].pop("dtype"),
        lambda m: m["arrays"]["model/w"].update(held_as="object"),
        lambda m: m["arrays"].update({"not there": m["arrays"]["model/w"]}),
    ):
        with pytest.raises(ValueError, match="is not a file of a saved learner|damaged"):
            restore_learner(learner, rewritten(path, change))


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a file was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    trapped = tmp_path / "trapped"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(trapped, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "model/w.npy":
                header = tmp_path / "header"
                with header.open("wb") as file:
                    np.save(file, np.array([Trap()], object), allow_pickle=True)
                data = header.read_bytes()
                assert pickle.dumps(Trap())
            new.writestr(name, data)
    with pytest.raises(ValueError, match="damaged"):
        restore_learner(learner, trapped)


def test_a_damaged_file_is_refused_or_gives_the_saved_values(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    whole, damaged = path.read_bytes(), tmp_path / "damaged"
    before = [bits(s.value) for s in brainstate.graph.states(learner).values()]
    for length in np.linspace(0, len(whole) - 1, 12).astype(int):
        damaged.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is truncated or damaged"):
            restore_learner(learner, damaged)
    choice, refused = np.random.default_rng(0), 0
    for place in choice.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(choice.integers(8))
        damaged.write_bytes(flipped)
        try:
            restore_learner(learner, damaged)
        except ValueError:
            refused += 1
        assert before == [bits(s.value) for s in brainstate.graph.states(learner).values()]
    assert refused > 30


def test_a_learner_must_be_compiled_with_the_states_it_has(tmp_path):
    learner = bt.D_RTRL(Cell())
    for act in (save_learner, restore_learner):
        with pytest.raises(bt.CompilationError, match="call compile_graph"):
            act(learner, tmp_path / "file")
    learner.compile_graph(jnp.ones((2, 3)))
    learner.model.h = brainstate.HiddenState(jnp.zeros((3, 4)))
    for act in (save_learner, restore_learner):
        with pytest.raises(bt.CompilationError, match="the hidden state h was initialised again"):
            act(learner, tmp_path / "file")


def test_inside_a_transformation_is_an_error(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    for act in (save_learner, restore_learner):
        for transform in (brainstate.transform.jit, jax.jit):
            with pytest.raises(RuntimeError, match="inside jit, for_loop or another"):
                transform(lambda act=act: act(learner, path))()

        def with_a_state_of_its_own(x: Any, act: Any = act) -> None:
            act(learner, path, brainstate.ShortTermState(x))

        with pytest.raises(RuntimeError, match="whose states are being traced"):
            jax.vmap(with_a_state_of_its_own)(jnp.ones(2))


def test_nothing_changes_when_a_state_refuses_its_value(tmp_path, monkeypatch):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    learner.model.w.value = learner.model.w.value * 2.0
    before = [bits(s.value) for s in brainstate.graph.states(learner).values()]

    def refuse(value: Any) -> None:
        monkeypatch.undo()
        raise ValueError("not this one")

    monkeypatch.setattr(learner.running_index, "restore_value", refuse, raising=False)
    with pytest.raises(ValueError, match="not this one"):
        restore_learner(learner, path)
    assert before == [bits(s.value) for s in brainstate.graph.states(learner).values()]


# --- optimizers -----------------------------------------------------------------------------------


class Schedule:
    """A plain object with a state, and a way back to what holds it."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.epoch, self.base = owner, brainstate.ShortTermState(jnp.zeros(())), 0.1


def scheduled() -> Adam:
    optimizer = Adam(learner_of().param_states)
    optimizer.schedules = [Schedule(optimizer)]
    return optimizer


def optimizers() -> dict[str, Any]:
    state = brainstate.ShortTermState
    return {
        "module": Adam(learner_of().param_states),
        "scheduled": scheduled(),
        "state": state({"mu": jnp.ones(2)}),
        "dict": {"a b": state(jnp.ones(2)), "b": [state(1.0), (state(2.0),)]},
    }


@pytest.mark.parametrize("name", ["module", "scheduled", "state", "dict"])
def test_an_optimizer_is_saved_with_its_learner(tmp_path, name):
    learner, optimizer = learner_of(), optimizers()[name]
    states = {*brainstate.graph.states(optimizer).values()}
    if name == "scheduled":
        states.add(optimizer.schedules[0].epoch)
    if isinstance(optimizer, Adam):
        states -= {*optimizer.weights.values()}
        optimizer.weights = learner.param_states
    expected = {s: jax.tree.map(lambda v: v + 1.0, s.value) for s in states}
    for state, value in expected.items():
        state.value = value
    save_learner(learner, tmp_path / "file", optimizer)
    for state in states:
        state.value = jax.tree.map(jnp.zeros_like, state.value)
    with pytest.raises(ValueError, match=r"optimizer: \w+ in the file, nothing here"):
        restore_learner(learner, tmp_path / "file")
    restore_learner(learner, tmp_path / "file", optimizer)
    for state, value in expected.items():
        assert bits(state.value) == bits(value)


def test_an_optimizer_that_was_not_saved_or_is_another_is_refused(tmp_path):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    optimizer = brainstate.ShortTermState(jnp.ones(2))
    assert refusal(learner, path, optimizer) == [
        "optimizer: nothing in the file, ShortTermState here",
        "optimizer: not in the file",
    ]
    save_learner(learner, path, optimizer)
    assert refusal(learner, path, {"a": optimizer}) == [
        "optimizer: ShortTermState in the file, dict here",
        "optimizer/a: not in the file",
        "optimizer: only in the file",
    ]


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda: optax.adam(0.1).init({"w": jnp.ones(2)}), r"optimizer\[0\]\[0\] \(a ArrayImpl\)"),
        (lambda: {"mu": jnp.ones(2)}, r"optimizer\['mu'\] \(a ArrayImpl\)"),
        (lambda: [brainstate.State(1.0), 2.0], r"optimizer\[1\] \(a float\)"),
        (lambda: optax.adam(0.1), r"optimizer\[0\] \(a function\)"),
        (lambda: {}, r"optimizer \(a dict\)"),
        (brainstate.nn.Module, r"optimizer \(a Module\)"),
    ],
)
def test_an_optimizer_without_states_is_refused(tmp_path, optimizer, said):
    learner = learner_of()
    for act in (save_learner, restore_learner):
        with pytest.raises(
            TypeError,
            match=rf"{said} holds no brainstate states; .*learner\.optimizer\(transformation\)",
        ):
            act(learner, tmp_path / "file", optimizer())
    assert not any(tmp_path.iterdir())


# --- crashes --------------------------------------------------------------------------------------


class Crash(BaseException):
    """Not an ordinary error."""


@pytest.mark.parametrize("error", [OSError, Crash])
@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [(np.lib.format, "write_array", 3), (os, "fsync", 1), (os, "replace", 1)],
    ids=["writing", "fsync", "replace"],
)
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, place, name, calls, error
):
    learner, path = learner_of(), tmp_path / "file"
    save_learner(learner, path)
    old, original, count = path.read_bytes(), getattr(place, name), iter(range(1, 100))

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(count) == calls:
            raise error("no space left")
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(error, match="no space left"):
        save_learner(learner, path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == old


# --- paths ----------------------------------------------------------------------------------------


def test_relative_paths_links_and_modes(tmp_path, monkeypatch):
    learner = learner_of()
    monkeypatch.chdir(tmp_path)
    save_learner(learner, "file.npz")
    assert Path("file.npz").exists()
    Path("inner").mkdir()
    os.symlink(tmp_path / "inner" / "target", "link")
    save_learner(learner, "link")
    assert Path("link").is_symlink() and Path("inner/target").is_file()
    os.chmod("inner/target", 0o640)
    learner.model.w.value = learner.model.w.value * 2.0
    save_learner(learner, b"link")
    restore_learner(learner, "inner/target")
    assert Path("link").is_symlink()
    assert os.stat("inner/target").st_mode & 0o777 == 0o640
    assert float(learner.model.w.value[0, 0]) == 2.0
    assert {p.name for p in tmp_path.rglob("*")} == {"file.npz", "inner", "link", "target"}


def test_parameters_alone(tmp_path):
    """Those of a file fit another rule, and nothing else changes."""
    saved, path = learner_of(), tmp_path / "file"
    saved.model.w.value = saved.model.w.value * 3.0
    save_learner(saved, path)
    other = learner_of(kind=bt.pp_prop, decay_or_rank=0.5)
    states = [*brainstate.graph.states(other).values()]
    before = {s: bits(s.value) for s in states if s is not other.model.w}
    seed = bits(brainstate.random.DEFAULT.value)
    with pytest.raises(
        ValueError, match=r"differs:(.|\n)*\nThe parameters are alike: restore\(path, o"
    ):
        restore_learner(other, path)
    restore_learner(other, path, only="parameters")
    assert bits(other.model.w.value) == bits(saved.model.w.value)
    assert before == {s: bits(s.value) for s in before} and len(before) > 1
    assert bits(brainstate.random.DEFAULT.value) == seed
    with pytest.raises(ValueError, match="only must be 'parameters' or None, got 'weights'"):
        restore_learner(other, path, only="weights")
    with pytest.raises(ValueError, match="restores no optimizer; leave it out"):
        restore_learner(other, path, other.optimizer(optax.sgd(0.1)), only="parameters")


def test_wrong_paths_are_said_to_be_wrong(tmp_path):
    learner = learner_of()
    with pytest.raises(FileNotFoundError, match=r"missing is no folder; make it before saving"):
        save_learner(learner, tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError, match="is a folder; path must be that of a file"):
        save_learner(learner, tmp_path)
    for act in (save_learner, restore_learner):
        with pytest.raises(TypeError, match=r"path must be a str or os\.PathLike, got dict"):
            act(learner, {})
        with pytest.raises(ValueError, match="path must be that of a file, got an empty one"):
            act(learner, "")


if __name__ == "__main__":
    with brainstate.environ.context(precision=64, fit=True):
        resume(*sys.argv[1:])
