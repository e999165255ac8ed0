# SPDX-License-Identifier: Apache-2.0
"""One plugin object asked for its declarations."""

from __future__ import annotations

from pathlib import Path

import pytest

from braintrace.ops.primitive import find_primitive
from braintrace.plugin_api import (
    ETPPrimitiveSpec,
    PluginInfo,
    hookimpl,
)
from braintrace.plugins import PluginError
from braintrace.plugins.errors import IncompatibleError
from braintrace.plugins.hooks import HookSpecs, collect, kind_of, listed
from braintrace.plugins.records import HostInfo
from braintrace.plugins.resolution import resolve
from tests.sites import plugin_object, scale

good_spec = ETPPrimitiveSpec("all_or_nothing_good", scale)


GARBAGE = {
    "no specification": ([good_spec, "etp_x"], "must return ETPPrimitiveSpec records, got str"),
    "not iterable": (7, "must return specifications, got int"),
    "none": (None, "braintrace_primitives returned None"),
    "twice": ([good_spec, ETPPrimitiveSpec("all_or_nothing_good", scale)], "more than once"),
    "counterpart": (
        [good_spec, ETPPrimitiveSpec("lonely", scale, batched_counterpart="nowhere")],
        "names 'nowhere' as its batched counterpart",
    ),
    "a rule without a trace": (
        [good_spec, ETPPrimitiveSpec("impossible", scale, yw_to_w=lambda dy: dy)],
        "yw_to_w of 'impossible' must take 2 positional arguments",
    ),
    "an initial trace of nothing": (
        [good_spec, ETPPrimitiveSpec("impossible", scale, init_drtrl=lambda: {})],
        "init_drtrl of 'impossible' must take 4 positional arguments",
    ),
    "no weight": (
        [good_spec, ETPPrimitiveSpec("impossible", lambda x: x)],
        "impl of 'impossible' must take 2 positional arguments",
    ),
    "name of another": (
        [good_spec, ETPPrimitiveSpec("etp_mm", scale)],
        "'etp_mm' is registered by 'braintrace_dense'",
    ),
}


@pytest.mark.parametrize("what", sorted(GARBAGE))
def test_a_plugin_is_committed_whole_or_not_at_all(what, host_of):
    specs, text = GARBAGE[what]
    host = host_of()
    resolve(host, "ops", "matmul")
    before = host.records()
    with pytest.raises(PluginError, match=text):
        host.register(plugin_object("garbage", specs))
    assert find_primitive("all_or_nothing_good") is None
    assert host.records() == before


def test_hooks_that_are_not_known_and_wrappers_are_refused(host_of):
    class Unknown:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo("unknown")

        @hookimpl
        def braintrace_primitives(self, api):
            return []

        @hookimpl
        def braintrace_no_such_hook(self):
            return 1

    class Wrapping:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo("wrapping")

        @hookimpl(wrapper=True)
        def braintrace_primitives(self, api):
            return (yield)

    with pytest.raises(PluginError, match="unknown hook 'braintrace_no_such_hook'"):
        host_of().register(Unknown())
    with pytest.raises(PluginError, match="is a wrapper"):
        host_of().register(Wrapping())


ROOT = Path(__file__).resolve().parents[3]


def test_every_hook_has_a_user_in_the_repository():
    sources = [*ROOT.glob("plugins/*/src/*/*.py"), *ROOT.glob("examples/*/src/*/*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in sources)
    hooks = [name for name in vars(HookSpecs) if name.startswith("braintrace_")]
    assert len(hooks) == 6
    assert [name for name in hooks if f"def {name}(" not in text] == []


def test_what_a_plugin_declares():
    offer = collect(plugin_object("offered", [good_spec], version="3"), "0.1.0")
    assert offer.specs == (good_spec,) and offer.info == PluginInfo("offered", version="3")
    assert offer.manager.hook.braintrace_algorithms.get_hookimpls() == []


def test_the_host_introduces_itself():
    told = []

    class Asking:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo("asking")

        @hookimpl
        def braintrace_primitives(self, api):
            told.append(api)
            return iter([good_spec])

    assert collect(Asking(), "0.1.0").specs == (good_spec,)
    assert told == [HostInfo((1, 0), "0.1.0")]


@pytest.mark.parametrize("api", [(2, 0), (1, 1), (0, 9)])
def test_another_plugin_api_is_incompatible(api):
    with pytest.raises(IncompatibleError, match=f"^{api[0]}.{api[1]}$"):
        collect(plugin_object("strange", [], api=api), "0.1.0")


def test_a_plugin_says_who_it_is():
    class Wrong:
        @hookimpl
        def braintrace_plugin_info(self):
            return "me"

    with pytest.raises(TypeError, match="must return a PluginInfo, got str 'me'"):
        collect(Wrong(), "0.1.0")
    with pytest.raises(TypeError, match="does not implement braintrace_plugin_info"):
        collect(object(), "0.1.0")
    with pytest.raises(TypeError, match="an instance of a small class, got the type Wrong"):
        collect(Wrong, "0.1.0")


def test_answers_are_lists():
    assert listed("hook", "cases", (k for k in (1, 2))) == (1, 2)
    for given, kind in (("ab", "str 'ab'"), ({}, "dict {}"), (3, "int 3")):
        with pytest.raises(TypeError, match=f"hook must return cases, got {kind}"):
            listed("hook", "cases", given)
    with pytest.raises(TypeError, match="hook returned None"):
        listed("hook", "cases", None)


def test_values_in_messages_are_short():
    assert kind_of("a" * 200) == "str '" + "a" * 79
    assert kind_of(pytest) == "module pytest" and kind_of(int) == "type int"
