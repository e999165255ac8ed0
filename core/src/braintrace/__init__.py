# SPDX-License-Identifier: Apache-2.0
"""Online learning of recurrent and spiking networks by eligibility traces.

Importing this package imports nothing else: names are resolved on first use. Core's own names
come from its modules, operations and layers from the plugin that is installed for them; the table
is ``names.py``, types are in ``__init__.pyi``.
"""

__version__ = "0.1.0"
__version_info__ = (0, 1, 0)

from .lazy import install_finders as _install_finders
from .lazy import names_of_core as __dir__  # noqa: F401
from .lazy import resolve_in_core as __getattr__  # noqa: F401

_install_finders()
