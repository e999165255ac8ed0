# SPDX-License-Identifier: Apache-2.0
"""Online learning of recurrent and spiking networks by eligibility traces.

Importing this package imports nothing else: names are resolved on first use. Core's own names
come from its modules, operations and layers from the plugin that is installed for them; the table
is ``names.py``, types are in ``__init__.pyi``.
"""

__version__ = "0.1.0"

from . import lazy as _lazy


def __getattr__(name):
    return _lazy.resolve_in_core(name)


def __dir__():
    return _lazy.names_of_core()


_lazy.install_finders()
