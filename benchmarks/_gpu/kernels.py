# SPDX-License-Identifier: Apache-2.0
"""How many kernels a compiled program starts, read in the text of XLA's optimised program."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

#: Instructions that start nothing on the device.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all add-dependency opt-barrier "
    "domain partition-id replica-id".split()
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
Program = Mapping[str, list[str]]


def launches(text: str) -> dict[str, int]:
    """Instructions that a run executes, by opcode; a loop counts as often as it turns.

    A loop whose number of turns the compiler does not know counts once, and as ``unknown loop``.
    """
    programs, entry = computations(text)

    @cache
    def of(name: str) -> Counter[str]:
        return sum((counted(line) for line in programs.get(name, [])), Counter())

    def counted(line: str) -> Counter[str]:
        opcode = opcode_of(line)
        if opcode == "while":
            return loop(line)
        if opcode == "call":
            return of(called(line, "to_apply"))
        if opcode == "conditional":
            return max(map(of, branches(line)), key=Counter.total, default=Counter())
        return Counter() if opcode in FREE or opcode.endswith("-done") else Counter([opcode])

    def loop(line: str) -> Counter[str]:
        known = TRIPS.search(line)
        body = of(called(line, "body"))
        if known is None:
            return body + of(called(line, "condition")) + Counter(["unknown loop"])
        return Counter({opcode: int(known[1]) * number for opcode, number in body.items()})

    return dict(of(entry))


def computations(text: str) -> tuple[Program, str]:
    """The instructions of each computation by its name, and the name of the first to run."""
    found: dict[str, list[str]] = {}
    current = entry = ""
    for line in text.splitlines():
        if line.startswith(" ") and " = " in line:
            found.setdefault(current, []).append(line.partition(" = ")[2])
        elif line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0]
            current = name.lstrip("%")
            entry = current if line.startswith("ENTRY") else entry
    return found, entry


def opcode_of(instruction: str) -> str:
    """The operation behind the type of an instruction."""
    found = OPCODE.match(instruction, _end_of_type(instruction))
    return found[1] if found else ""


def _end_of_type(instruction: str) -> int:
    if not instruction.startswith("("):
        return instruction.find(" ")
    depth = 0
    for position, character in enumerate(instruction):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position + 1
    return 0


def called(instruction: str, role: str) -> str:
    """The computation that an instruction names in a role."""
    found = re.search(rf"\b{role}=%?([\w.\-]+)", instruction)
    return found[1] if found else ""


def branches(instruction: str) -> Iterator[str]:
    """The computations that a conditional chooses from."""
    found = re.search(r"branch_computations=\{([^}]*)\}", instruction)
    if found:
        yield from (name.strip().lstrip("%") for name in found[1].split(","))
    else:
        yield from (called(instruction, f"{side}_computation") for side in ("true", "false"))
