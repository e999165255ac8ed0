# SPDX-License-Identifier: Apache-2.0
"""Command line of ``examples/digits.py``: every value is checked before anything is computed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ALGORITHMS = ("d_rtrl",)
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


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


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = _whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def seed_number(text: str) -> int:
    """A whole number that fits a random seed of 32 bits."""
    value = _whole_number(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie between 0 and {2**32 - 1}, got {text}")
    return value


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


def figure_path(text: str) -> Path:
    """A picture file in a folder that exists."""
    path = Path(text)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        expected = ", ".join(FIGURE_SUFFIXES)
        raise argparse.ArgumentTypeError(f"must end in one of {expected}, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder of {text!r} cannot be written to")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; expected a file")
    return path


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


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
