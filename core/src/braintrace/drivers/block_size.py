# SPDX-License-Identifier: Apache-2.0
"""How many steps of a sequence to evaluate together."""

from __future__ import annotations

import math

import jax

from ..algorithms.base import LearningRule, ParameterTraces
from ..base import versions
from ..base.types import bytes_of

MIB = 2**20
#: Records of this size stay close to the processor.
NEAR = 16 * MIB
#: Off a CPU they may as well be larger: each block and each stage starts many kernels.
OFF_CPU = 64 * MIB
#: And in the nearest caches of a CPU, where a rule takes steps: its traces cost a block nothing.
NEAREST = 2 * MIB
#: What a block adds to sums of gradients is small beside a record this much larger than they are.
TIMES_THE_SUMS = 2.0
#: Up to this size, one record of a whole sequence is faster than a trace.
WHOLE = 64 * MIB
#: Records of this size fit any machine that holds the model.
LARGE = 256 * MIB
#: A block passes over the traces a few times. With a record this much larger, that is a small part.
TIMES_THE_TRACES = 2.5
#: Where a processor writes traces over themselves, example by example, a pass costs less; this is
#: for each state, as each reads the others.
TIMES_BY_EXAMPLE = 0.4
#: How long a block may be that divides the sequence, in parts of what the budget gives.
NEAR_ENOUGH = 0.6, 1.25


def auto_block_size(rule: LearningRule, steps: int, carried: bool = True, besides: int = 0) -> int:
    """The block size that ``'auto'`` stands for.

    A block records ``x``, ``f``, ``D``, ``l`` (and ``e``) of every step, and what the rule makes of
    them. A trace that is carried is read and written once per block, so blocks are as long as makes
    that cheap and no longer: a small record is faster than a large one, whose memory is fresh. If
    no trace is carried, a single block needs none at all, and is taken unless its record is large.
    A rule that takes steps has no traces left to pass over at the end of a block. Its blocks are
    shorter on a CPU, as long as makes adding their gradients to the sum cheap.
    Blocks divide the sequence if they can do so and be about as long; a shorter last block is
    another program to compile.

    ``carried``: whether traces lead into and out of the sequence. ``besides``: bytes that a step
    records for parameters without a trace.
    """
    if rule.takes_steps and jax.default_backend() == "cpu":
        sums = TIMES_THE_SUMS * bytes_of(rule.executor.cotangent_types)
        per_step = rule.bytes_per_step + besides
        return equal_blocks(steps, max(1.0, min(max(NEAREST, sums), NEAR) / max(1, per_step)))
    per_step = record_bytes(rule) + besides
    traces = bytes_of(jax.eval_shape(rule.init))
    if not carried and steps * per_step <= budget(traces, WHOLE):
        return steps
    least = NEAR if jax.default_backend() == "cpu" else OFF_CPU
    record = budget(traces, least, times_the_traces(rule))
    return equal_blocks(steps, max(1.0, record / max(1, per_step)))


def times_the_traces(rule: LearningRule) -> float:
    """How much larger than the traces a record should be."""
    rules = rule.rules if isinstance(rule, ParameterTraces) else ()
    if jax.default_backend() != "cpu" or not any(one.by_example for one in rules):
        return TIMES_THE_TRACES
    sizes = [bytes_of(one.types) for one in rules]
    fast = [TIMES_BY_EXAMPLE * one.num_state if one.by_example else math.inf for one in rules]
    parts = [size * min(times, TIMES_THE_TRACES) for size, times in zip(sizes, fast, strict=True)]
    return sum(parts) / max(1, sum(sizes))


def budget(traces: int, least: int = NEAR, times: float = TIMES_THE_TRACES) -> float:
    """How many bytes a record should take beside traces of so many."""
    return min(max(least, times * traces), max(LARGE, traces))


def equal_blocks(steps: int, longest: float) -> int:
    """The divisor of ``steps`` next to ``longest``; if none is near, a block that is not longer."""
    least, most = (part * longest for part in NEAR_ENOUGH)
    small = [n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0]
    near = [n for n in (*small, *(steps // n for n in small)) if least <= n <= most]
    if near:
        return min(near, key=lambda size: max(size / longest, longest / size))
    return math.ceil(steps / math.ceil(steps / math.floor(longest)))


def record_bytes(rule: LearningRule) -> int:
    """Bytes that a block takes for each of its steps."""
    if not rule.from_blocks:
        return rule.bytes_per_step
    executor = rule.executor
    plan = executor.graph.perturbed
    width = max((v.dtype.itemsize for v in plan.init_perturb_data()), default=4)
    total = rule.bytes_per_step + 2 * bytes_of(plan.init_perturb_data())
    xs = (relation.x_var for relation in executor.graph.hidden_param_op_relations)
    inputs = {x for x in xs if x is not None and versions.is_var(x)}
    total += bytes_of([var.aval for var in inputs])
    for link in rule.links:
        own = executor.cascades.get(link.group.index)
        states = len(own[0]) if own else link.group.num_state
        total += states * math.prod(link.extra) * bytes_of(link.relation.y_var.aval)
    for group in {link.group.index: link.group for link in rule.links}.values():
        if group.index in executor.cascades:
            total += bytes_of(executor.jacobian_types.transition[group.index])
            continue
        bands = executor.bands.get(group.index)
        entries = sum(band.length for band in bands) if bands else group.num_state**2
        total += entries * math.prod(group.varshape) * width
    return total
