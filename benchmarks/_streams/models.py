# SPDX-License-Identifier: Apache-2.0
"""The models: ours, those of river, and the rolling LSTM of deep-river where it is installed."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from river import base, compose, dummy, forest, linear_model, preprocessing, tree

#: ``make(seed)``, and whether the result depends on the seed.
Made = tuple[Callable[[int], Any], bool]

LAGS = 10  # samples that a model without memory sees, as many as the window of deep-river
UNITS = 64


class Lagged(base.Transformer):
    """The features of this sample and of the ``LAGS - 1`` before it."""

    def __init__(self, count: int = LAGS) -> None:
        self.count = count
        self._past: deque[dict[str, float]] = deque(maxlen=count - 1)

    def learn_one(self, x: dict[str, float]) -> None:
        """Keep a sample."""
        self._past.appendleft(dict(x))

    def transform_one(self, x: dict[str, float]) -> dict[str, float]:
        """All features, those of the past by name and age."""
        past = enumerate(self._past, 1)
        return {**x, **{f"{name}-{age}": value for age, old in past for name, value in old.items()}}


class Last(base.Regressor):
    """The next value is the one now."""

    def learn_one(self, x: dict[str, float], y: float) -> None:
        """Nothing."""

    def predict_one(self, x: dict[str, float]) -> float:
        """The one feature."""
        return x["x0"]


def available(series: str) -> dict[str, Made]:
    """The models of a series that can be imported here."""
    found = classifiers() if series == "shuttle" else regressors()
    if importlib.util.find_spec("deep_river"):
        found |= deep(series)
    if importlib.util.find_spec("braintrace_river"):
        found |= ours(series)
    return found


def scaled(model: Any) -> Any:
    """Inputs and target with mean 0 and variance 1, as far as is known by then."""
    return preprocessing.StandardScaler() | preprocessing.TargetStandardScaler(model)


def regressors() -> dict[str, Made]:
    """Of river: without memory, and with the last samples as features."""

    def linear(seed: int) -> Any:
        return scaled(linear_model.LinearRegression())

    def with_lags(model: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda seed: (
            preprocessing.StandardScaler()
            | compose.Pipeline(Lagged(), preprocessing.TargetStandardScaler(model(seed)))
        )

    return {
        "last value": (lambda seed: Last(), False),
        "linear": (linear, False),
        f"linear, {LAGS} lags": (with_lags(lambda seed: linear_model.LinearRegression()), False),
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
            lambda seed: preprocessing.StandardScaler() | Lagged()
            | linear_model.LogisticRegression(), False,
        ),
        "Hoeffding adaptive tree": (
            lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed), True,
        ),
        "adaptive random forest": (lambda seed: forest.ARFClassifier(seed=seed), True),
    }  # fmt: skip


def ours(series: str) -> dict[str, Made]:
    """Gated units of every rule, with the same settings on every series."""
    from braintrace_river import GRUNetwork, RecurrentClassifier, RecurrentRegressor

    network = partial(GRUNetwork, units=UNITS)
    rules = {
        "GRU, D-RTRL": ("d_rtrl", None),
        "GRU, pp_prop": ("pp_prop", {"decay_or_rank": 0.9}),
        "GRU, no trace": ("pp_prop", {"decay_or_rank": 0.0}),
    }

    def make(algorithm: str, options: dict[str, Any] | None, seed: int) -> Any:
        if series == "shuttle":
            model = RecurrentClassifier(network, algorithm, options, classes=(0, 1), seed=seed)
            return preprocessing.StandardScaler() | model
        return scaled(RecurrentRegressor(network, algorithm, options, seed=seed))

    return {name: (partial(make, *rule), True) for name, rule in rules.items()}


def deep(series: str) -> dict[str, Made]:
    """LSTM over a window of the last samples, by Adam with the same rate."""
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
        settings = {"optimizer_fn": "adam", "lr": 3e-3, "window_size": LAGS, "seed": seed}
        if series == "shuttle":
            loss = {"loss_fn": "cross_entropy", "output_is_logit": True}
            model = RollingClassifier(module=Network(9, 2), **settings, **loss)
            return preprocessing.StandardScaler() | model
        return scaled(RollingRegressor(module=Network(1, 1), loss_fn="mse", **settings))

    return {f"deep-river, rolling LSTM, window {LAGS}": (make, True)}
