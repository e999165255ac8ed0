#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: inspect.signature of a layer shows the arguments of its constructor, as for every Python
# class, so that an editor, a command line or a sweep over hyper-parameters can read them from it.
#
# Found: with brainstate 0.5.4 every module, one's own included, shows (*args, **kwargs): the
# metaclass of its nodes defines __call__, and inspect asks that first. __init__ still has them.
#
# Why it matters to people who train networks online: tools that build models or learning rules
# from configurations find no argument to set, and misspelt ones are noticed only when a model is
# made. Read inspect.signature(Module.__init__), or give the class a __signature__ of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    brainstate==0.5.4 jax==0.10.2 jaxlib==0.10.2 saiunit==0.5.2
"$folder/env/bin/python" - <<'PYTHON'
import inspect

import brainstate


class Own(brainstate.nn.Module):
    def __init__(self, units: int, *, gain: float = 1.0) -> None:
        super().__init__()


seen = {}
for module in (Own, brainstate.nn.Linear, brainstate.nn.GRUCell):
    seen[module.__name__] = list(inspect.signature(module).parameters)
    print(module.__name__, inspect.signature(module))
print("Own.__init__", inspect.signature(Own.__init__))
assert all(names == ["args", "kwargs"] for names in seen.values()), seen
assert list(inspect.signature(Own.__init__).parameters) == ["self", "units", "gain"]
print(f"brainstate {brainstate.__version__}: the signature of a module hides its arguments")
PYTHON
