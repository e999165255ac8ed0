# SPDX-License-Identifier: Apache-2.0
"""Installed distributions with one plugin, correct or broken in its packaging."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from braintrace.plugin_api import bind
from braintrace.testing import ConformanceCase

SOURCE = """
{first}
from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, bind, hookimpl

__version__ = "1.0"


def scale(x, w):
    return x * w


SPECS = tuple(ETPPrimitiveSpec(name, scale) for name in {primitives!r})


def {op}(x, w):
    return bind(SPECS[0], x, w)


class Plugin:
    @hookimpl
    def braintrace_plugin_info(self):
        exports = {{"ops": {exports!r}}}
        return PluginInfo(
            {family!r}, distribution={distribution!r}, version={version!r}, exports=exports
        )

    @hookimpl
    def braintrace_primitives(self, api):
        return {returned}


plugin = Plugin()
other = Plugin()
"""

numbers = count()


def install(
    folder: Path,
    *,
    first: str = "",
    more_primitives: tuple[str, ...] = (),
    more_exports: tuple[str, ...] = (),
    version: str = "1.0",
    returned: str = "SPECS",
    entry: str = "plugin",
    requires: str = "Requires-Dist: braintrace-core>=0.1\n",
    rivals: int = 0,
) -> str:
    """Write a distribution into ``folder``; returns the name of its module."""
    name = f"kitplug{next(numbers)}"
    text = SOURCE.format(
        first=first,
        primitives=(f"{name}_scale", *more_primitives),
        exports=(f"{name}_op", *more_exports),
        op=f"{name}_op",
        family=name,
        distribution=f"dist-{name}",
        version=version,
        returned=returned,
    )
    (folder / f"{name}.py").write_text(text)
    for distribution in [f"dist-{name}", *(f"rival{i}-{name}" for i in range(rivals))]:
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        lines = ["[braintrace.plugins.v1]", f"{name} = {name}:{entry}"]
        lines += ["[braintrace.ops]", f"{name}_op = {name}:{name}_op"]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(head + requires)
    return name


def case_for(module: Any) -> ConformanceCase:
    """A case of the module's first primitive."""
    spec = module.SPECS[0]

    def operands(seed: int, dtype: Any) -> Any:
        return tuple(jax.random.normal(jax.random.key(seed), (2, 3), dtype))

    return ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))


#: Check -> what is wrong with the distribution, and what the failure says.
PACKAGING_BREAKERS: MappingProxyType[str, tuple[dict[str, Any], str]] = MappingProxyType(
    {
        "packaging.declaration": ({"returned": "'scale'"}, "must return specifications"),
        "packaging.every_primitive_has_a_case": (
            {"more_primitives": ("kitplug_without_case",)},
            "no case of kitplug_without_case",
        ),
        "packaging.entry_point": ({"entry": "other"}, "is another object"),
        "packaging.version": ({"version": "1.1"}, "'1.1', the metadata '1.0'"),
        "packaging.requires_core": ({"requires": ""}, "no requirement braintrace-core"),
        "packaging.exports": ({"more_exports": ("ghost",)}, r"\('ops', 'ghost'\)"),
        "packaging.loads": ({"rivals": 1}, "provides the family"),
        "packaging.imports_the_plugin_api_alone": (
            {"first": "from braintrace import ETPPrimitiveSpec"},
            "braintrace.ETPPrimitiveSpec",
        ),
        "packaging.import_initialises_no_backend": (
            {"first": "import jax.numpy\nONES = jax.numpy.ones(3)"},
            "initialises a JAX backend",
        ),
    }
)
