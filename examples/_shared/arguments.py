# SPDX-License-Identifier: Apache-2.0
"""Command lines: every value is checked before anything is computed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    quick: bool
    seed: int
    figure: Path


def parse(arguments: Sequence[str] | None, description: str | None, name: str) -> Options:
    """The options of an example; its picture is ``name.svg`` unless it says otherwise."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument(
        "--seed", type=seed_number, default=0, metavar="N", help="weights and data (default: 0)"
    )
    parser.add_argument(
        "--figure",
        type=figure_path,
        default=Path(f"{name}.svg"),
        metavar="PATH",
        help="where to save the picture (default: %(default)s)",
    )
    return Options(**vars(parser.parse_args(arguments)))


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def seed_number(text: str) -> int:
    """A whole number that fits a random seed of 32 bits."""
    value = whole_number(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie between 0 and {2**32 - 1}, got {text}")
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


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
