# SPDX-License-Identifier: Apache-2.0
"""The public checks of river, which every estimator of river passes."""

from __future__ import annotations

from functools import partial

import pytest
from river import checks, preprocessing
from river_networks import Leaky

from braintrace_river import RecurrentClassifier, RecurrentRegressor

pytest.importorskip("sklearn", reason="the checks of river read data of scikit-learn")

MODELS = {
    "regressor": RecurrentRegressor(partial(Leaky, units=2), update_every=3),
    "classifier": RecurrentClassifier(Leaky),
    "pipeline": preprocessing.StandardScaler() | RecurrentClassifier(Leaky),
    "target": preprocessing.StandardScaler()
    | preprocessing.TargetStandardScaler(RecurrentRegressor(Leaky, seed=1)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_river_s_checks(model):
    found = list(checks.yield_checks(model))
    assert len(found) > 20
    for check in found:
        check(model.clone())
