# SPDX-License-Identifier: Apache-2.0
"""Equations: which letters an input, a weight and a result have, and what each letter is for.

Of the letters of ``x``, ``w`` and ``y``::

    contracted   x w      summed over
    output         w y    an axis that the weight adds
    group        x w y    a weight of its own for each entry
    position     x   y    one weight for all entries, as for the examples of a batch
"""

from __future__ import annotations

import string
from typing import NamedTuple

#: Letters that equations of primitives do not use: that of the examples, and that of the steps.
EXAMPLES, STEPS = "Z", "Y"

_LETTERS = string.ascii_lowercase


class Equation(NamedTuple):
    """The letters of a contraction ``x, weight -> y``, and of a bias that is added to ``y``."""

    x: str
    weight: str
    y: str
    bias: str | None = None

    @classmethod
    def read(cls, text: str) -> Equation:
        """From the static parameter of a primitive, ``"x,weight->y"`` or ``"x,weight,bias->y"``."""
        operands, y = text.split("->")
        x, weight, *bias = operands.split(",")
        return cls(x, weight, y, *bias)

    def __str__(self) -> str:
        bias = "" if self.bias is None else f",{self.bias}"
        return f"{self.x},{self.weight}{bias}->{self.y}"

    @property
    def positions(self) -> str:
        """Letters over which one weight is shared, in the order of ``y``."""
        return "".join(letter for letter in self.y if letter not in self.weight)

    @property
    def elementwise(self) -> bool:
        """Whether every entry of ``y`` reads one entry of ``x``, that of its own position."""
        return set(self.weight) <= set(self.x) & set(self.y)

    def with_letter(self, letter: str) -> Equation:
        """With one more axis in front of ``x`` and ``y``."""
        return self._replace(x=letter + self.x, y=letter + self.y)


class Parsed(NamedTuple):
    """What a user wrote: how operands are brought to the letters that count, and their equation.

    ``x`` and ``weight`` are equations of one operand, ``"ii->i"``; ``batched`` says that a letter
    of examples leads in ``x`` and ``y``, which the equation leaves out.
    """

    x: str
    weight: str
    equation: Equation
    batched: bool


def parse(text: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> Parsed:
    """The letters of an equation for operands of these shapes.

    Raises
    ------
    TypeError
        When the equation is no string.
    ValueError
        When it is not one of two operands, does not fit the shapes, or cannot be read.
    """
    if not isinstance(text, str):
        raise TypeError(f"einsum: equation must be a string, got {type(text).__name__}")
    try:
        x, weight, y = _terms(text.replace(" ", ""), len(x_shape))
        _check_sizes({"x": (x, x_shape), "weight": (weight, w_shape)})
        _check_result(y, x + weight)
        return _canonical(x, weight, y)
    except _Refused as why:
        raise ValueError(
            f"einsum: {why}; the equation is {text!r}, x has shape {x_shape} and weight has "
            f"shape {w_shape}"
        ) from None


class _Refused(Exception):
    """Why an equation is none."""


def _terms(text: str, x_axes: int) -> tuple[str, str, str]:
    """Letters of ``x``, of ``weight`` and of the result, without an ellipsis."""
    operands, arrow, y = text.partition("->")
    x, comma, weight = operands.partition(",")
    if not comma or "," in weight:
        raise _Refused("expected two operands, x and weight")
    dots, letters = "...", x + weight
    if not arrow:
        letters = letters.replace(dots, "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        y = dots * x.count(dots) + "".join(once)
    if "." in weight:
        raise _Refused("the weight needs a letter for each axis in place of an ellipsis")
    if "." in x + y:
        if x.count(dots) != 1 or y.count(dots) != 1:
            raise _Refused("an ellipsis stands once in x and once in the result")
        free = "".join(letter for letter in string.ascii_letters if letter not in text)
        axes = free[: max(0, x_axes - len(x) + len(dots))]
        x, y = x.replace(dots, axes), y.replace(dots, axes)
    if odd := sorted(set(x + weight + y) - set(string.ascii_letters)):
        raise _Refused(f"letters must be a to z or A to Z, found {''.join(odd)!r}")
    return x, weight, y


def _check_sizes(terms: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    sizes: dict[str, int] = {}
    for name, (term, shape) in terms.items():
        if len(term) != len(shape):
            raise _Refused(f"{name} has axes {shape} and letters {term!r}")
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise _Refused(f"the letter {letter!r} has the sizes {sizes[letter]} and {size}")


def _check_result(y: str, known: str) -> None:
    if unknown := "".join(sorted(set(y) - set(known))):
        raise _Refused(f"no operand has {unknown!r} of the result")
    if len(set(y)) != len(y):
        raise _Refused("the result has a letter twice")


def _canonical(x: str, weight: str, y: str) -> Parsed:
    """Letters of one operand alone are summed, doubled ones are one, and all get new names."""
    kept_w = "".join(letter for letter in dict.fromkeys(weight) if letter in x + y)
    kept_x = "".join(letter for letter in dict.fromkeys(x) if letter in kept_w + y)
    batched = y[:1] in kept_x and y[:1] not in kept_w and y != ""
    if batched:  # examples come first
        kept_x = y[0] + kept_x.replace(y[0], "")
    start = int(batched)
    used = dict.fromkeys(kept_x[start:] + kept_w)
    if len(used) > len(_LETTERS):
        raise _Refused(f"more than {len(_LETTERS)} letters count")
    names = str.maketrans(dict(zip(used, _LETTERS, strict=False)))
    terms = (term.translate(names) for term in (kept_x[start:], kept_w, y[start:]))
    return Parsed(f"{x}->{kept_x}", f"{weight}->{kept_w}", Equation(*terms), batched)
