# SPDX-License-Identifier: Apache-2.0
"""Command line of ``examples/digits.py``: every value is checked before anything is computed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from _shared.arguments import figure_path, positive_int, seed_number

ALGORITHMS = ("d_rtrl",)


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    task: str
    epochs: int
    batch_size: int
    seed: int
    algorithm: str
    block_size: int | Literal["auto"]
    bptt: bool
    figure: Path
    check: float | None


def block_size(text: str) -> int | Literal["auto"]:
    """``auto``, or a number of time steps of at least 1."""
    if text == "auto":
        return "auto"
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error} (or give 'auto')") from None


def accuracy(text: str) -> float:
    """A fraction between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a fraction, got {text!r}") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value


def parse(arguments: Sequence[str] | None, description: str, num_images: int) -> Options:
    """The options on the command line; exits with status 2 and a message when one is wrong."""
    parser = _parser(description)
    given = parser.parse_args(arguments)
    if given.batch_size > num_images:
        parser.error(
            f"argument --batch-size: must be at most {num_images}, the number of training "
            f"images, got {given.batch_size}"
        )
    return Options(**vars(given))


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)

    def add(name: str, text: str, **settings: Any) -> None:
        if "default" in settings:
            text += " (default: %(default)s)"
        parser.add_argument(name, help=text, **settings)

    add("--task", "network to train", choices=("gru", "lif", "both"), default="both")
    add("--epochs", "passes over the data", type=positive_int, default=40, metavar="N")
    add("--batch-size", "images per update", type=positive_int, default=64, metavar="N")
    add("--seed", "weights, order and spikes", type=seed_number, default=0, metavar="N")
    add("--algorithm", "online learning rule", choices=ALGORITHMS, default="d_rtrl")
    add(
        "--block-size",
        "time steps evaluated together, 'auto' or a number; changes the speed only",
        type=block_size,
        default="auto",
        metavar="N",
    )
    add(
        "--no-bptt",
        "leave out the comparison with backpropagation through time",
        dest="bptt",
        action="store_false",
    )
    add(
        "--figure",
        "where to save the picture",
        type=figure_path,
        default=Path("digits.png"),
        metavar="PATH",
    )
    add(
        "--check",
        "exit with status 1 unless every network trained online reaches this accuracy",
        type=accuracy,
        metavar="ACCURACY",
    )
    return parser
