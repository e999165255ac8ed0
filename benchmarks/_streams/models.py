# SPDX-License-Identifier: Apache-2.0
"""The models: ours, those of river, and the rolling LSTM of deep-river where it is installed."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from river import base, dummy, forest, linear_model, optim, preprocessing, tree

#: ``make(seed)``, and whether the result depends on the seed.
Made = tuple[Callable[[int], Any], bool]

LAGS = 10  # samples that a model without memory sees, as many as the window of deep-river
UNITS = 64


class Lagged:
    """A model of the features of this sample and of the ``LAGS - 1`` before it.

    It is around the model and not before it: in a pipeline, an unsupervised transformer learns a
    sample before it transforms it for the model to learn, and not before a prediction.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._past: deque[dict[str, float]] = deque(maxlen=LAGS - 1)

    def _with_past(self, x: dict[str, float]) -> dict[str, float]:
        past = enumerate(self._past, 1)
        return {**x, **{f"{name}-{age}": value for age, old in past for name, value in old.items()}}

    def predict_one(self, x: dict[str, float]) -> Any:
        """That of the model."""
        return self.model.predict_one(self._with_past(x))

    def learn_one(self, x: dict[str, float], y: Any) -> None:
        """Let the model learn, then keep the sample."""
        self.model.learn_one(self._with_past(x), y)
        self._past.appendleft(dict(x))


class Last(base.Regressor):
    """The next value is the one now: of the laser the feature, of the water a change of nothing."""

    def __init__(self, change: bool) -> None:
        self.change = change

    def learn_one(self, x: dict[str, float], y: float) -> None:
        """Nothing."""

    def predict_one(self, x: dict[str, float]) -> float:
        """The one feature, or zero."""
        return 0.0 if self.change else x["x0"]


def available(series: str) -> dict[str, Made]:
    """The models of a series that can be imported here."""
    found = classifiers() if series == "shuttle" else regressors(series)
    if importlib.util.find_spec("deep_river"):
        found |= deep(series)
    if importlib.util.find_spec("braintrace_river"):
        found |= ours(series)
    return found


def scaled(model: Any) -> Any:
    """Inputs and target with mean 0 and variance 1, as far as is known by then."""
    return preprocessing.StandardScaler() | preprocessing.TargetStandardScaler(model)


def regressors(series: str) -> dict[str, Made]:
    """Of river: without memory, and with the last samples as features."""

    def linear(seed: int) -> Any:
        return scaled(linear_model.LinearRegression())

    def with_lags(model: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda seed: Lagged(scaled(model(seed)))

    def slow_linear(seed: int) -> Any:  # with river's default, 1e-2, it diverges on the water
        return linear_model.LinearRegression(optim.SGD(1e-3))

    return {
        "last value": (lambda seed: Last(series == "water"), False),
        "linear": (linear, False),
        f"linear, {LAGS} lags": (with_lags(slow_linear), False),
        f"bayesian linear, {LAGS} lags": (
            with_lags(lambda seed: linear_model.BayesianLinearRegression()), False,
        ),
        f"Hoeffding adaptive tree, {LAGS} lags": (
            with_lags(lambda seed: tree.HoeffdingAdaptiveTreeRegressor(seed=seed)), True,
        ),
    }  # fmt: skip


def classifiers() -> dict[str, Made]:
    """Of river."""
    return {
        "no change": (lambda seed: dummy.NoChangeClassifier(), False),
        "logistic": (
            lambda seed: preprocessing.StandardScaler() | linear_model.LogisticRegression(), False,
        ),
        f"logistic, {LAGS} lags": (
            lambda seed: Lagged(
                preprocessing.StandardScaler() | linear_model.LogisticRegression()
            ), False,
        ),
        "Hoeffding adaptive tree": (
            lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed), True,
        ),
        "adaptive random forest": (lambda seed: forest.ARFClassifier(seed=seed), True),
    }  # fmt: skip


def ours(series: str) -> dict[str, Made]:
    """Gated units of every rule, with the same settings on every series."""

    from _tasks import rules

    from braintrace_river import GRUNetwork, RecurrentClassifier, RecurrentRegressor

    network = partial(GRUNetwork, units=UNITS)
    rms = rules.optimiser("no_trace_rms", 1e-3)
    kinds = {
        "GRU, D-RTRL": ("d_rtrl", None, None),
        "GRU, pp_prop": ("pp_prop", {"decay_or_rank": 0.9}, None),
        "GRU, no trace": ("pp_prop", {"decay_or_rank": 0.0}, None),
        "GRU, no trace, RMSprop": ("pp_prop", {"decay_or_rank": 0.0}, rms),
    }

    def make(algorithm: str, options: dict[str, Any] | None, optimiser: Any, seed: int) -> Any:
        given = network, algorithm, options, optimiser
        if series == "shuttle":
            return preprocessing.StandardScaler() | RecurrentClassifier(*given, seed=seed)
        return scaled(RecurrentRegressor(*given, seed=seed))

    return {name: (partial(make, *kind), True) for name, kind in kinds.items()}


def deep(series: str) -> dict[str, Made]:
    """LSTM over a window of the last samples, by the optimizer that ours have."""
    import torch
    from deep_river.classification import RollingClassifier
    from deep_river.regression import RollingRegressor

    class Network(torch.nn.Module):
        """LSTM and a readout of its last step."""

        def __init__(self, n_features: int, outputs: int) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(n_features, UNITS)
            self.readout = torch.nn.Linear(UNITS, outputs)

        def forward(self, x: Any) -> Any:
            """[steps, 1, features] to [1, outputs]."""
            return self.readout(self.lstm(x)[0][-1])

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        settings = {"optimizer_fn": "adam", "lr": 1e-3, "window_size": LAGS, "seed": seed}
        settings["gradient_clip_value"] = 1.0
        if series == "shuttle":
            loss = {"loss_fn": "cross_entropy", "output_is_logit": True}
            model = RollingClassifier(module=Network(9, 2), **settings, **loss)
            return preprocessing.StandardScaler() | model
        count = 2 if series == "water" else 1
        return scaled(RollingRegressor(module=Network(count, 1), loss_fn="mse", **settings))

    return {f"deep-river, rolling LSTM, window {LAGS}": (make, True)}
