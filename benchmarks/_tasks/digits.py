# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits, with what each step of a sequence counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _shared import digits
from _shared.problem import Examples, Split
from sklearn.linear_model import LogisticRegression


def split(step_weights: np.ndarray) -> Callable[[], Split]:
    """The digits with one weight per step [T], the same for every image."""

    def load() -> Split:
        found = digits.load()
        train = np.tile(step_weights, (len(found.train_labels), 1))
        test = np.tile(step_weights, (len(found.test_labels), 1))
        return Split(
            Examples(found.train_images, train, found.train_labels),
            Examples(found.test_images, test, found.test_labels),
        )

    return load


def every_step(steps: int) -> np.ndarray:
    """Every step counts."""
    return np.ones(steps, np.float32)


def last_step(steps: int) -> np.ndarray:
    """The last step counts alone."""
    return steps * np.eye(steps, dtype=np.float32)[-1]


def logistic_regression() -> float:
    """Held-out accuracy of a linear classifier that sees all pixels at once."""
    found = digits.load()
    model = LogisticRegression(max_iter=2000).fit(found.train_images, found.train_labels)
    return float(model.score(found.test_images, found.test_labels))
