# SPDX-License-Identifier: Apache-2.0
"""Where the credit of a probe goes that the mask of a rule leaves out of the influence.

    M^t = mask . (J^t M^{t-1} + P^t)

An entry outside of the mask is the sum of all paths of a parameter that are kept until they come to
a state ``c`` where they are not. With ``mu_c^t``, the gradient of the later losses with respect to
the new value of ``c`` past all other new values of that step, an entry of the ledger is

    sum_t < mu_c^t, (1 - mask) . J_{cg}^t M_g^{t-1} >

of what comes from the old values of ``g``. What parameters make themselves is always kept.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .probe import BORDER, KEPT, LAYER, RECURRENT, STATE, Found, Probe, Row
from .steps import add_traced


def entries_of_masks(probe: Probe, rows: Row, inside: Any, scale: Any) -> list[Found]:
    """The entries of a probe of an :class:`InfluenceRule` with a mask."""
    rule: Any = probe.rule
    places = {s.path: probe.cut.leaves.get(s.state, ()) for s in probe.graph.module_info.slots}
    at = [places[s.path][s.leaf] for s in rule.carried]
    known = {s.path for s in rule.carried}
    ends = [c for c in probe.targets if known.intersection(probe.paths(c))]
    number = {path: k for k, c in enumerate(ends) for path in probe.paths(c)}
    groups = [number[s.path] for s in rule.carried]

    def only(k: int, values: Any) -> list[Any]:
        return [v if own == k else jnp.zeros_like(v) for v, own in zip(values, groups, strict=True)]

    def one(traces: Any, row: Row) -> Any:
        found = {}
        pull, (values, _), moving = probe.pull_back(rule.perturbations(), row, scale)
        lost = pull(float(inside is None), row.later)[0]
        for g in range(len(ends)):
            left = rule.left_out(only(g, traces), values, probe.params)
            for c in range(len(ends)):
                found[g, c] = rule.credit(None, {}, probe.params, after=left, signals=only(c, lost))
        new = rule.after_steps(traces, jax.tree.map(lambda v: v[None], values), probe.params)
        if inside is None:
            met, olds, direct = pull(1.0, jax.tree.map(jnp.zeros_like, row.later))
            of_old = {p: [olds.get(i, 0.0) for i in own] for p, own in places.items()}
            kept = rule.credit(traces, of_old, probe.params, after=new, signals=met)
        else:
            met, direct = [row.border[i] for i in at], None
            kept = rule.credit(None, {}, probe.params, after=new, signals=met)
        return new, ((found, kept), (direct, moving))

    _, (of_steps, (direct, moving)) = jax.lax.scan(one, rule.init(), rows)
    found, kept = jax.tree.map(lambda v: v.sum(0), of_steps)
    nothing = jax.tree.map(jnp.zeros_like, probe.params)
    own = inside
    if inside is None:
        stepwise, products = direct
        own = probe.direct(jax.tree.map(lambda v: v.sum(0), stepwise), products, moving)
    entries = [Found(KEPT, None, None, add_traced(own, kept))]
    for (g, c), gradients in found.items():
        hidden = not isinstance(ends[g], tuple) and not isinstance(ends[c], tuple)
        kind = (RECURRENT if g == c else LAYER) if hidden else STATE
        kind = kind if inside is None else BORDER
        entries.append(Found(kind, ends[g], ends[c], add_traced(nothing, gradients)))
    return entries
