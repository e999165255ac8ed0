# SPDX-License-Identifier: Apache-2.0
"""The kit says itself in which precision it works; only compile time matters here."""

from __future__ import annotations

import jax

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs
