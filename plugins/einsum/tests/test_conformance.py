# SPDX-License-Identifier: Apache-2.0
"""The primitives of contractions pass the conformance kit: each use of a letter."""

from __future__ import annotations

import jax
import pytest

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_einsum import einsum, grouped_matmul
from braintrace_einsum._plugin import plugin
from braintrace_einsum._primitives import FORMS

SIZES = {"b": 3, "g": 2, "h": 2, "i": 3, "n": 3, "o": 2, "p": 2}


def drawn(seed, dtype, *terms):
    shapes = [tuple(SIZES[letter] for letter in term) for term in terms]
    seeds = (seed, 100, 101)
    return [
        jax.random.normal(jax.random.key(key), shape, dtype)
        for key, shape in zip(seeds, shapes, strict=False)
    ]


def case(equation):
    """An equation, with ``b`` as the letter of examples."""
    x, weight, y = equation.replace("->", ",").split(",")
    form = set(weight) <= set(x) & set(y), bool(set(y) - set(weight) - {"b"}), y[0] == "b"
    return ConformanceCase(
        FORMS[form],
        lambda seed, dtype: drawn(seed, dtype, x, weight),
        lambda x, w: einsum(equation, x, w),
        equation.replace(",", "_").replace("->", "_"),
    )


def grouped(batch):
    terms = f"{batch}gi", "gio", "go"
    spec = FORMS[False, False, bool(batch)]
    name = f"grouped{batch}"
    return ConformanceCase(spec, lambda *args: drawn(*args, *terms), grouped_matmul, name)


#: With all checks: a plain form, and one with positions in front of groups and behind them.
WHOLE = [case("bgi,igo->bgo"), case("bpgi,gio->bgpo")]
#: Without models, which are in test_einsum_training; single examples, and further equations.
OTHERS = [
    *map(case, ["gi,gio->og", "gi,gih->g", "pi,io->op", "pgi,gi->gp", "bpi,ngi->bnpg"]),
    *map(case, ["n,n->n", "gn,ng->gn", "bn,n->bn", "bgn,gn->bgn"]),
    *map(case, ["pn,n->np", "np,n->np", "bpn,n->bpn", "bnp,n->bpn"]),
    grouped(""),
    grouped("b"),
]
CHECKS = [
    check
    for check in bound_checks(plugin, [*WHOLE, *OTHERS])
    if check.subject not in OTHERS or check.id.startswith(("cases", "jax", "rules", "units"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
