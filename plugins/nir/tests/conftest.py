# SPDX-License-Identifier: Apache-2.0
"""Every test runs in double precision, with the families that the adapter needs."""

from importlib.util import find_spec

import jax

from braintrace_conv._plugin import plugin as conv
from braintrace_dense._plugin import plugin as dense
from braintrace_elemwise._plugin import plugin as elemwise
from braintrace_testing.fixtures import (  # noqa: F401  they are found by their names
    double_precision,
    free_compiled_programs,
    known,
    strict_jax,
)

if find_spec("nir") is None:  # the adapter is not installed
    collect_ignore_glob = ["test_*.py"]
jax.config.update("jax_disable_most_optimizations", True)  # many small programs
known_conv, known_dense, known_elemwise = known(conv), known(dense), known(elemwise)
