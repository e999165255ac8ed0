# SPDX-License-Identifier: Apache-2.0
"""The tasks: networks, data and settings, and the figures they are to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from _shared import digits as images
from _shared import networks, text, vowels

from _tasks import adaptive, archive, digits, evidence, matching, predict, spoken
from _tasks.classify import Classification

ACCURACY = "held-out accuracy"
BITS = "bits per character"
BATCHES = "batches until 0.95"


class Trained(Protocol):
    """What every kind of task is."""

    @property
    def decay(self) -> float:
        """Of pp_prop."""

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """Train from the weights of a seed and return the figure of the task."""


@dataclass(frozen=True)
class Task:
    """A task and what is known about it.

    ``known`` has figures of earlier measurements in hand-written JAX, three seeds, by rule;
    ``without`` computes the figure of a model without recurrence; ``published`` are figures of
    others, which are not measured here.
    """

    title: str
    measures: str
    work: Trained
    known: dict[str, str]
    without: tuple[str, Callable[[], float]] | None = None
    published: str = ""


def _long(series: archive.Archive, fastest: float, phase: float, batch_size: int) -> Classification:
    """Long series to label, with the loss at their last step."""
    return Classification(
        build=archive.filters(series, fastest=fastest, phase=phase),
        load=series.split,
        encode=archive.steps_first,
        rate=1e-2,
        decay=0.9,
        epochs=30,
        batch_size=batch_size,
        block_size=4,
        together=True,
    )


LOGISTIC = ("logistic regression on all pixels", digits.logistic_regression)

TASKS = {
    "A": Task(
        "Poisson-coded digits, 128 LIF neurons",
        ACCURACY,
        Classification(
            build=partial(networks.spiking, images.PIXELS, 128, 10),
            load=digits.split(digits.every_step(images.SPIKE_STEPS)),
            encode=images.poisson_spikes,
            rate=3e-3,
            decay=0.9,
        ),
        {"d_rtrl": "0.964 0.951 0.958", "bptt": "0.976 0.958 0.969"},
        LOGISTIC,
    ),
    "B": Task(
        "digits row by row, GRU 64",
        ACCURACY,
        Classification(
            build=partial(networks.gated, images.SIDE, 64, 10),
            load=digits.split(digits.last_step(images.SIDE)),
            encode=images.rows,
            rate=5e-3,
            decay=0.3,
            rms=0.3,
        ),
        {"d_rtrl": "0.962 0.978 0.953", "bptt": "0.978 0.976 0.980"},
        LOGISTIC,
    ),
    "C": Task(
        "digits pixel by pixel, LRU of 128 modes",
        ACCURACY,
        Classification(
            build=partial(networks.diagonal, 1, 128, 10),
            load=digits.split(digits.last_step(images.PIXELS)),
            encode=images.pixels,
            rate=5e-3,
            decay=0.9,
        ),
        {"d_rtrl": "0.978 0.978", "bptt": "the same"},
        LOGISTIC,
    ),
    "D": Task(
        "speakers of JapaneseVowels, GRU 64",
        ACCURACY,
        Classification(
            build=partial(networks.gated, vowels.CHANNELS, 64, vowels.SPEAKERS),
            load=vowels.split,
            encode=vowels.steps_first,
            rate=5e-3,
            decay=0.9,
            rms=0.3,
            epochs=60,
            batch_size=30,
        ),
        {"d_rtrl": "0.927 0.946 0.935", "bptt": "0.935 0.943 0.930"},
    ),
    "E": Task(
        "characters of pydoc_data.topics, GRU 128",
        BITS,
        predict.Prediction(),
        {"d_rtrl": "2.37", "bptt": "2.27"},
        ("order-2 n-gram (an earlier one: 2.64)", lambda: text.order_two(text.load())),
    ),
    "F": Task(
        "delayed match to sample, 100 GIF neurons",
        BATCHES,
        matching.Matching(),
        {"d_rtrl": "180 to 360", "bptt": "320 to 820"},
    ),
    "G": Task(
        "digits shown for 8 of 32 steps, 20 LIF neurons without recurrence",
        ACCURACY,
        Classification(
            build=partial(networks.feedforward, images.PIXELS, 20, 10),
            load=digits.split(digits.last_step(images.SPIKE_STEPS)),
            encode=images.shown,
            rate=2e-2,
            decay=0.9,
            rms=0.3,
        ),
        {},
        LOGISTIC,
    ),
    "H1": Task(
        "appliances of ACSF1 by their power, 128 modes",
        ACCURACY,
        _long(archive.ACSF1, fastest=0.5, phase=3.14, batch_size=50),
        {},
        published="HIVE-COTE 2 0.91, InceptionTime 0.91, FreshPRINCE 0.89, WEASEL 2.0 0.93",
    ),
    "H2": Task(
        "pigs of PigCVP by their venous pressure, 128 modes",
        ACCURACY,
        _long(archive.PIGS, fastest=0.9, phase=0.5, batch_size=52),
        {},
        published="HIVE-COTE 2 0.95, InceptionTime 0.97, FreshPRINCE 0.80, WEASEL 2.0 0.96",
    ),
    "I": Task(
        "evidence accumulation, 100 neurons, half of them adaptive",
        ACCURACY,
        evidence.Evidence(),
        {},
        published="e-prop: mlGeNN 0.911, NEST 0.938",
    ),
    "J": Task(
        "synthetic spoken digits, 100 neurons, half of them adaptive",
        ACCURACY,
        Classification(
            build=partial(
                adaptive.adaptive, spoken.CHANNELS, 100, spoken.CLASSES, spoken.STEP, 200.0
            ),
            load=spoken.split,
            encode=spoken.steps_first,
            rate=5e-3,
            decay=0.9,
            epochs=20,
            block_size=8,
        ),
        {},
        ("logistic regression on counts of spikes", spoken.of_counts),
    ),
    "control": Task(
        "digits pixel by pixel, 64 leaky tanh units",
        ACCURACY,
        Classification(
            build=partial(networks.leaky, 1, 64, 10),
            load=digits.split(digits.last_step(images.PIXELS)),
            encode=images.pixels,
            rate=5e-3,
            decay=0.9,
        ),
        {"d_rtrl": "0.24 to 0.38", "bptt": "0.80"},
        LOGISTIC,
    ),
}


def missing(name: str) -> str | None:
    """What has to be installed before a task can be run, if anything."""
    found = {"H1": archive.ACSF1.missing, "H2": archive.PIGS.missing}
    if name in found:
        return found[name]()
    return vowels.MISSING if name == "D" and vowels.folder() is None else None
