# SPDX-License-Identifier: Apache-2.0
"""The estimators: names and labels in front of the programs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from river import base

from ._arguments import check_arguments, is_whole, places
from ._networks import GRUNetwork
from ._program import Programs, Spec, Values

Model = Callable[[int, int], brainstate.nn.Module]


class _Recurrent(base.Estimator):
    """What the regressor and the classifier have in common."""

    def __init__(
        self,
        model: Model,
        algorithm: Any,
        options: dict[str, Any] | None,
        optimizer: Any,
        update_every: int,
        features: Any,
        seed: int | None,
    ) -> None:
        check_arguments(model, options, optimizer, update_every, features)
        self.model = model
        self.algorithm = algorithm
        self.options = options
        self.optimizer = optimizer
        self.update_every = update_every
        self.features = features
        self.seed = seed
        self._drawn_seed: int | None = None
        self._inputs = places("features", features) if self._named else {}
        self._many_inputs = 0
        self._warned = False
        self._programs: Programs | None = None
        self._values: Values | None = None
        self._saved: list[np.ndarray] | None = None

    @property
    def _named(self) -> bool:
        """Whether the names of the features are given."""
        return not (self.features is None or is_whole(self.features))

    def reset_state(self) -> None:
        """Set the hidden states and traces to their start, after a break in the stream.

        Weights and what the optimizer keeps stay as they are.
        """
        if self._started():
            programs, values = self._running()
            self._values = programs.reset(values)

    # --- programs and values ----------------------------------------------------------------

    def _spec(self, outputs: int) -> Spec:
        """What the programs are made of."""
        return Spec(
            self.model, self.algorithm, self.options, self.optimizer, self.update_every,
            *self._learning(), self._many_inputs, outputs,
        )  # fmt: skip

    def _learning(self) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        """The loss, and what a prediction shows of the outputs."""
        raise NotImplementedError

    def _outputs(self) -> int:
        """How many outputs the network has."""
        raise NotImplementedError

    def _started(self) -> bool:
        """Whether something has been learned."""
        return self._values is not None or self._saved is not None

    def _start(self, x: Mapping[Any, Any]) -> None:
        """Make the network, for the features that there are."""
        named = len(self._inputs) or 2 * max(1, len(x))
        self._many_inputs = int(self.features) if is_whole(self.features) else named
        if self._drawn_seed is None:
            drawn = int(np.random.default_rng().integers(2**31))
            self._drawn_seed = drawn if self.seed is None else self.seed
        self._programs = self._spec(self._outputs()).programs()
        self._values = self._programs.first(self._drawn_seed)

    def _running(self) -> tuple[Programs, Values]:
        """Programs and values, those of a pickle taken over when they are first needed."""
        if self._programs is None or self._values is None:
            programs = self._spec(self._outputs()).programs()
            self._values = programs.taken(self._saved or [])
            self._programs, self._saved = programs, None
        return self._programs, self._values

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_programs": None, "_values": None}
        if self._programs is not None and self._values is not None:
            state["_saved"] = self._programs.saved(self._values)
        return state

    @property
    def _raw_memory_usage(self) -> int:
        """Bytes of arrays and of names of features; programs are shared, and not counted."""
        leaves = self._saved if self._values is None else jax.tree.leaves(self._values)
        return sum(leaf.nbytes for leaf in leaves or ()) + sys.getsizeof(self._inputs)

    # --- features -----------------------------------------------------------------------------

    def _row(self, programs: Programs, x: Mapping[Any, Any]) -> np.ndarray:
        """The array of a step; features without an input are left out."""
        row, places = programs.row(), self._inputs
        try:
            for name, value in x.items():
                place = places.get(name)
                if place is not None:
                    row[place] = value
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"feature {name!r} must be a number, got {value!r:.80}; text and categories are "
                "encoded before, as by river.preprocessing.OneHotEncoder"
            ) from error
        if not np.isfinite(row).all():
            name = next(k for k in x if k in places and not np.isfinite(row[places[k]]))
            raise ValueError(
                f"feature {name!r} is {x[name]}, which would spoil all weights; leave a missing "
                "value out of the sample, which is 0, or fill it in before, as "
                "river.preprocessing.StatImputer does for None"
            )
        return row

    def _learn(self, x: Mapping[Any, Any], target: float, weight: float, classes: int) -> None:
        """One step and, when it is due, an update."""
        if not self._started():
            self._start(x)
        if not x.keys() <= self._inputs.keys():
            self._place(x)
        programs, values = self._running()
        row = self._row(programs, x)
        row[-3:] = target, weight, classes
        if not (isfinite(row[-3]) and isfinite(row[-2])):
            raise ValueError(f"target and weight must be finite, got {target} and {weight}")
        self._values = programs.learn(values, row)

    def _place(self, names: Iterable[Any]) -> None:
        """Give new features the inputs that are free, whatever order they come in."""
        if self._named:
            return
        new = [name for name in names if name not in self._inputs]
        for name in sorted(new, key=lambda name: (type(name).__name__, str(name))):
            if len(self._inputs) < self._many_inputs:
                self._inputs[name] = len(self._inputs)
            elif not self._warned:
                self._warned = True
                warnings.warn(
                    f"feature {name!r} is left out, as further new ones will be: the network has "
                    f"{self._many_inputs} inputs, and each has its feature; make it with more, as "
                    f"in {type(self).__name__}(..., features={2 * self._many_inputs}), or with as "
                    "many as the n_features of a river.preprocessing.FeatureHasher before it",
                    stacklevel=4,
                )


def _half_square(output: jax.Array, target: jax.Array) -> jax.Array:
    """The loss of a regressor."""
    return 0.5 * (output - target) ** 2


class _Regression:
    """The loss of a regressor on the network's one output."""

    def __init__(self, loss: Callable[..., jax.Array]) -> None:
        self.loss = loss

    def __call__(self, outputs: jax.Array, target: jax.Array, classes: jax.Array) -> jax.Array:
        return self.loss(outputs[0], target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Regression) and self.loss == other.loss

    def __hash__(self) -> int:
        return hash(self.loss)


def _output(outputs: jax.Array, classes: jax.Array) -> jax.Array:
    """What a regressor predicts."""
    return outputs[0]


class RecurrentRegressor(_Recurrent, base.Regressor):
    """A recurrent network that learns to predict a number at every step of a stream.

    ``learn_one(x, y)`` is a step of the network: the hidden state and the traces move on, and the
    weights change by the gradient of the loss, which reaches as far back as the learning rule says.
    ``predict_one(x)`` is the output of that same step, with the hidden state of now; it changes
    nothing, so that a prediction can be asked for any number of times, or never. Labels that come
    late are learned when they come: the network sees the steps in the order of ``learn_one``.

    Numbers are taken as they are. Most streams want ``river.preprocessing.StandardScaler`` before
    it, and ``river.preprocessing.TargetStandardScaler`` around it.

    Parameters
    ----------
    model
        ``model(inputs, outputs)`` returns a ``brainstate.nn.Module`` that maps [1, inputs] to
        [1, outputs] at each step: a class or a function. For pickles, one that can be imported, or
        a ``functools.partial`` of one.
    algorithm
        A learning rule, as of ``braintrace.compile``.
    options
        Of the learning rule, such as ``{"decay_or_rank": 0.9}`` for ``"pp_prop"``.
    optimizer
        An ``optax`` transformation, or a function that makes one, such as
        ``functools.partial(optax.adam, 1e-2)``; only the latter can be pickled. Default: Adam with
        a rate of 1e-3, gradients clipped to norm 1.
    loss
        ``loss(output, target)``, two numbers to one; default: half the squared error.
    update_every
        The weights change after so many steps, by the mean gradient of them.
    features
        The names of the features, each of which has an input of the network; or how many inputs
        there are, for the names that appear first. Default: those of the first ``x``, and as many
        free inputs. A feature that is absent is 0. One that has no input is left out, with one
        warning unless the names were given.
    seed
        Of the initial weights, and of what the network draws.

    Raises
    ------
    ValueError
        For an ``update_every`` or ``features`` below 1 or names that are there twice; at the first
        step for a network of other shapes; at a step, which is not made, for a feature, target or
        weight that is not finite, as None and NaN.
    TypeError
        For a network in place of what makes one; at a step, for a feature that is no number.
    CompilationError, NotSupportedError
        At the first step, when the network cannot be compiled.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> import braintrace_river
    >>> network = braintrace_river.RecurrentRegressor(seed=0)
    >>> model = preprocessing.StandardScaler() | preprocessing.TargetStandardScaler(network)
    >>> error = evaluate.progressive_val_score(
    ...     datasets.TrumpApproval(), model, metrics.MAE()
    ... )
    >>> error.get() < 1
    True
    """

    def __init__(
        self,
        model: Model = GRUNetwork,
        algorithm: Any = "d_rtrl",
        options: dict[str, Any] | None = None,
        optimizer: Any = None,
        loss: Callable[..., jax.Array] | None = None,
        update_every: int = 1,
        features: int | tuple[Any, ...] | list[Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(model, algorithm, options, optimizer, update_every, features, seed)
        self.loss = loss

    def learn_one(self, x: dict[Any, Any], y: base.typing.RegTarget, w: float = 1.0) -> None:
        """Make a step and learn its target ``y``; ``w`` is the weight of the loss."""
        self._learn(x, float(y), w, 1)

    def predict_one(self, x: dict[Any, Any]) -> float:
        """The output of the step that ``x`` would be; 0 before anything was learned."""
        if not self._started():
            return 0.0
        programs, values = self._running()
        return float(programs.predict(values, self._row(programs, x)))

    def _learning(self) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        return _Regression(self.loss or _half_square), _output

    def _outputs(self) -> int:
        return 1


FEWEST_OUTPUTS = 4


def _cross_entropy(outputs: jax.Array, target: jax.Array, classes: jax.Array) -> jax.Array:
    """The loss of a classifier, among the classes so far."""
    return -jnp.log(jnp.maximum(_probabilities(outputs, classes), 1e-30))[target.astype(int)]


def _probabilities(outputs: jax.Array, classes: jax.Array) -> jax.Array:
    """Those of the classes so far, which have the first outputs; 0 for the others."""
    return jax.nn.softmax(outputs, where=jnp.arange(outputs.size) < classes)


class RecurrentClassifier(_Recurrent, base.Classifier):
    """A recurrent network that learns to name the class at every step of a stream.

    Everything is as for :class:`RecurrentRegressor`, with the cross-entropy of the classes as the
    loss. Classes may appear at any time. Each has an output of the network; when there are no more,
    the network is made anew with twice as many, and keeps what it has learned.

    Parameters
    ----------
    model, algorithm, options, optimizer, update_every, features, seed
        As for :class:`RecurrentRegressor`. Outputs are logits.
    classes
        Those that are known before they appear; others may follow.

    Raises
    ------
    ValueError
        As for :class:`RecurrentRegressor`; for a new class, when the network cannot be made wider
        because its outputs are not the last axis of its readout alone; for a class that is NaN.
    TypeError, CompilationError, NotSupportedError
        As for :class:`RecurrentRegressor`.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> import braintrace_river
    >>> model = preprocessing.StandardScaler() | braintrace_river.RecurrentClassifier(seed=0)
    >>> accuracy = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())
    >>> accuracy.get() > 0.8
    True
    """

    def __init__(
        self,
        model: Model = GRUNetwork,
        algorithm: Any = "d_rtrl",
        options: dict[str, Any] | None = None,
        optimizer: Any = None,
        update_every: int = 1,
        features: int | tuple[Any, ...] | list[Any] | None = None,
        classes: tuple[Any, ...] | list[Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(model, algorithm, options, optimizer, update_every, features, seed)
        self.classes = classes
        self._labels = places("classes", classes or ())

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[Any, Any], y: base.typing.ClfTarget, w: float = 1.0) -> None:
        """Make a step and learn its class ``y``; ``w`` is the weight of the loss."""
        place = self._labels.get(y)
        if place is None:
            place = self._new_class(x, y)
        self._learn(x, place, w, len(self._labels))

    def predict_proba_one(self, x: dict[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """The probability of each class so far; of nothing, before there is one."""
        if not self._started():
            return dict.fromkeys(self._labels, 1 / max(1, len(self._labels)))
        programs, values = self._running()
        row = self._row(programs, x)
        row[-1] = len(self._labels)
        found = np.asarray(programs.predict(values, row), np.float64)[: len(self._labels)]
        return dict(zip(self._labels, (found / found.sum()).tolist(), strict=True))

    def _new_class(self, x: Mapping[Any, Any], label: Any) -> int:
        """An output for a new class, of a wider network if there is no other."""
        if label != label:
            raise ValueError(f"the class is {label}, which is no class; leave the sample out")
        count = len(self._labels)
        if self._started() and count == self._outputs():
            old, before = self._running()
            new = self._spec(2 * count).programs()
            row = self._row(old, x)
            self._values = new.grown(new.first(self._drawn_seed or 0), before, row, old)
            self._programs = new
        self._labels[label] = count
        return count

    def _learning(self) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        return _cross_entropy, _probabilities

    def _outputs(self) -> int:
        """The first of 4, 8, 16, ... with room for all classes."""
        count = FEWEST_OUTPUTS
        while count < len(self._labels):
            count *= 2
        return count
