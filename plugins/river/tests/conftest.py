# SPDX-License-Identifier: Apache-2.0
"""Every test runs in double precision, and compiled programs are freed after each file."""

import sys
from pathlib import Path

import jax

from braintrace_testing.fixtures import double_precision, free_compiled_programs  # noqa: F401

sys.path.append(str(Path(__file__).parent))  # for river_networks
jax.config.update("jax_disable_most_optimizations", True)  # small programs
