# SPDX-License-Identifier: Apache-2.0
"""What the machine needs at least: products at the rate it reaches, traces at its bandwidth.

Per contender, the limit is a sum of three: the products that run step after step (the model, and
what its signals or reverse mode need), at the rate of the model's largest product; those that can
wait and be one product for the whole sequence (weight gradients, and the trace after it: one
multiply-add per step and entry), at the rate of such a product; and the passes over the traces,
each read once and written once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp

from .counting import Counts, Product, count, traces_of
from .settings import Contender, Sizes

LARGEST = 2**26  # entries of an array of a measurement
FLOAT = 4


def limits(
    name: str, sizes: Mapping[str, Sizes], contenders: Sequence[Contender]
) -> dict[str, Any]:
    """Rates of this machine for a model, and seconds that each contender needs at least.

    Returns
    -------
    dict
        ``counts`` (FLOP per step), ``trace_bytes``; ``step_rate`` and ``batched_rate`` in FLOP per
        second, ``pass_s``, the seconds of a pass over the traces (read and write); ``seconds`` per
        contender.
    """
    counts = count(name, sizes["gradient"])
    traces = sum(traces_of(name, sizes["gradient"]))
    rates = {
        "step_rate": product_rate(counts.largest),
        "batched_rate": product_rate(over_time(counts.largest, sizes["gradient"].steps)),
        "pass_s": pass_seconds(traces),
    }
    seconds = {
        one.name: needed(one, counts, traces, rates, sizes[one.work].steps)
        for one in contenders
        if one.chunk is None
    }
    return {"counts": asdict(counts), "trace_bytes": traces, **rates, "seconds": seconds}


def needed(
    one: Contender, counts: Counts, traces: int, rates: Mapping[str, float], steps: int
) -> float:
    """Seconds that a contender needs at least for a sequence."""
    step = counts.forward + counts.signals
    batched, passes = counts.weights, 0
    if one.kind == "bptt":
        step += counts.history
    elif one.rule == "D_RTRL" and one.kind != "sequence":
        batched, passes = 0, steps  # the weight gradient comes from the pass
    elif one.rule == "D_RTRL" and (one.carry or isinstance(one.block, int)):
        blocks = 1 if one.block == "auto" else -(-steps // int(one.block))
        passes = blocks if one.carry else max(0, blocks - 1)
        batched += 2 * traces // FLOAT if passes else 0
    products = steps * (step / rates["step_rate"] + batched / rates["batched_rate"])
    return products + passes * rates["pass_s"]


def over_time(product: Product, steps: int) -> Product:
    """The weight gradient of a product, for as many steps as fit a measurement."""
    rows = min(product.rows * steps, LARGEST // (product.inner + product.columns))
    return Product(product.inner, rows, product.columns)


def product_rate(product: Product) -> float:
    """FLOP per second of products of a size, one after another in a compiled loop."""
    size = product.rows * product.inner
    number = max(1, min(64, 10**9 // product.flop, LARGEST // size))
    left = jnp.ones((number, product.rows, product.inner))
    right = jnp.ones((product.inner, product.columns))
    run = jax.jit(lambda left, right: jax.lax.map(lambda one: one @ right, left))
    return number * product.flop / fastest(lambda: run(left, right))


def pass_seconds(count: int) -> float:
    """Seconds to read and write an array of so many bytes, in a compiled loop."""
    number = max(1, min(1000, 2**30 // count))
    run = jax.jit(
        lambda a: jax.lax.fori_loop(0, number, lambda _, a: 0.999 * a, a), donate_argnums=0
    )
    held = [jnp.ones(max(1, count // FLOAT))]

    def once() -> Any:
        held[0] = run(held[0])
        return held[0]

    return fastest(once) / number


def fastest(run: Callable[[], Any], rounds: int = 7) -> float:
    """The shortest of several runs in seconds, after one to compile."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
