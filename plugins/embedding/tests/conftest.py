# SPDX-License-Identifier: Apache-2.0
"""Every test runs in double precision, with the plugin known to braintrace."""

import jax

from braintrace_embedding._plugin import plugin
from braintrace_testing.fixtures import (  # noqa: F401  they are found by their names
    double_precision,
    free_compiled_programs,
    known,
    strict_jax,
)

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs
known_plugin = known(plugin)
