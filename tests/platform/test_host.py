# SPDX-License-Identifier: Apache-2.0
"""Loading, isolation, collisions, selection and registration, with made-up plugins."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import pytest

import braintrace
from braintrace.names import OFFICIAL
from braintrace.ops.primitive import find_primitive
from braintrace.plugin_api import CompilationError, ETPPrimitiveSpec, PluginInfo, bind, hookimpl
from braintrace.plugins import PluginError, metadata, process
from braintrace.plugins.host import Host
from braintrace.plugins.records import Settings
from braintrace.plugins.resolution import available, resolve


@pytest.fixture
def host_of(monkeypatch):
    """A host of its own, in this process, that sees the sites; it also serves ``bind``."""

    def make(*sites, **settings):
        for site in reversed(sites):
            monkeypatch.syspath_prepend(str(site.folder))
        host = Host(Settings(**settings))
        monkeypatch.setattr(process, "_HOST", host)
        return host

    return make


def record_of(host, family):
    return next(r for r in host.records() if r.family == family)


def scale(x, w):
    return x * w


def plugin_object(family, specs, **info):
    class Plugin:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo(family, **info)

        @hookimpl
        def braintrace_primitives(self, api):
            return specs

    return Plugin()


# --- isolation -----------------------------------------------------------------------------------

BROKEN = {
    "import_error": ("import no_such_module_at_all", "ModuleNotFoundError: No module named"),
    "os_error": ('raise OSError("no library")', "OSError: no library"),
    "system_exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "syntax_error": ("def (", "SyntaxError"),
    "no_plugin": ("x = 1", "AttributeError: module 'broken_no_plugin' has no attribute 'plugin'"),
    "garbage": ("plugin = 42", "TypeError: the plugin does not implement braintrace_plugin_info"),
    "impossible_rules": (
        "from braintrace.plugin_api import ETPPrimitiveSpec as S\n"
        "plugin = S('x', lambda x, w: x, x_invar_index=-1)",
        "ValueError: x_invar_index of 'x' must be None or an operand position",
    ),
    "memory_error": ("raise MemoryError()", "MemoryError"),
    "a_class": ("class plugin: pass", "TypeError: a plugin is an instance of a small class"),
}


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_broken_plugins_are_isolated(how, site, host_of, plugin_source):
    text, reason = BROKEN[how]
    site.add(f"broken-{how}", f"broken_{how}", text, family=f"broken_{how}", ops=["broken_op"])
    site.add(f"good-{how}", f"good_{how}", plugin_source(f"good_{how}", f"good_{how}"),
             family=f"good_{how}", ops=[f"good_op_{how}"])  # fmt: skip
    host = host_of(site)
    records = {r.family: r for r in host.load_all()}
    broken, good = records[f"broken_{how}"], records[f"good_{how}"]
    assert broken.state == "failed" and broken.exception is not None
    assert reason in broken.reason
    assert good.state == "loaded" and good.primitives == (f"good_{how}",)
    assert resolve(host, "ops", f"good_op_{how}")(jnp.ones(2), jnp.full(2, 3.0)).tolist() == [3, 3]
    with pytest.raises(PluginError, match="which failed to load") as caught:
        resolve(host, "ops", "broken_op")
    assert caught.value.__cause__ is broken.exception
    with pytest.raises(PluginError, match="1 plugin\\(s\\) did not load"):
        host.load_all(strict=True)


def test_an_export_that_is_not_there(site, host_of, plugin_source):
    text = plugin_source("noexport", "noexport_p").replace("def op(", "def other(")
    host = host_of(site.add("noexport", "noexport", text, family="noexport", ops=["nothing"]))
    with pytest.raises(PluginError, match="'noexport:op' cannot be loaded") as caught:
        resolve(host, "ops", "nothing")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_metadata_that_cannot_be_read_hides_nobody_else(site, host_of, plugin_source):
    site.add("good-beside", "good_beside", plugin_source("beside", "beside_p"), family="beside")
    bad = site.folder / "bad-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[braintrace.ops]\nno equals sign\n")
    (site.folder / "nameless-1.0.dist-info").mkdir()
    assert record_of(host_of(site), "beside").state == "discovered"


def test_a_plugin_that_binds_while_it_is_imported(site, host_of, plugin_source):
    text = plugin_source("eager", "eager_p") + "\nimport jax.numpy as jnp\nop(jnp.ones(1), 2.0)\n"
    host = host_of(site.add("eager", "eager_module", text, family="eager", ops=["eager"]))
    with pytest.raises(PluginError, match="while it is being imported"):
        resolve(host, "ops", "eager")


def test_a_plugin_may_provide_a_name_that_is_refused(site, host_of, plugin_source):
    assert not hasattr(braintrace.nn, "Embedding")
    text = plugin_source("embeds", "embeds_p")
    site.add("embeds", "embeds_module", text, family="embeds", nn=["Embedding"])
    host_of(site)
    embedding = braintrace.nn.Embedding
    assert embedding.__module__ == "embeds_module" and "Embedding" in dir(braintrace.nn)


# --- all or nothing ------------------------------------------------------------------------------

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


def test_the_family_of_the_entry_point_and_of_the_plugin_must_agree(site, host_of, plugin_source):
    site.add("two-names", "two_names", plugin_source("first", "first_p"), family="second")
    host = host_of(site)
    assert "names the family 'first'" in {r.family: r for r in host.load_all()}["second"].reason
    assert find_primitive("first_p") is None


# --- registration in this process ----------------------------------------------------------------


def test_register_a_plugin_object(host_of):
    spec = ETPPrimitiveSpec("registered_p", scale)
    plugin = plugin_object("registered", [spec], distribution="my-plugin", version="3")
    host = host_of()
    record = braintrace.plugins.register(plugin)
    assert record.state == "loaded" and record.primitives == ("registered_p",)
    assert braintrace.plugins.register(plugin) == record
    assert host.primitive_of(spec) is find_primitive("registered_p")
    with pytest.raises(PluginError, match="'my-plugin' of this plugin is known already"):
        host.register(plugin_object("registered", [], distribution="my-plugin"))


def test_register_a_family_that_is_installed(host_of):
    host = host_of()
    with pytest.raises(PluginError, match="provides the family 'dense' too"):
        host.register(plugin_object("dense", []))
    assert record_of(host, "dense").state == "discovered"


def test_bind_without_any_plugin_registers_the_specification(host_of):
    host_of()
    spec = ETPPrimitiveSpec("on_the_spot", scale)
    assert bind(spec, jnp.ones(2), jnp.full(2, 5.0)).tolist() == [5, 5]
    assert find_primitive("on_the_spot").owner == scale.__module__.partition(".")[0]


def test_bind_loads_the_owner_first(site, host_of, plugin_source):
    text = plugin_source("lazyown", "lazyown_p")
    host = host_of(site.add("lazyown", "lazyown", text, family="lazyown"))
    import lazyown

    assert record_of(host, "lazyown").state == "discovered"
    assert lazyown.op(jnp.ones(1), jnp.ones(1)).tolist() == [1]
    assert record_of(host, "lazyown").state == "loaded"


def test_bind_of_a_primitive_that_its_plugin_does_not_declare(site, host_of, plugin_source):
    text = plugin_source("hidden", "hidden_p") + "\nMORE = ETPPrimitiveSpec('undeclared', scale)\n"
    host_of(site.add("hidden", "hidden_module", text, family="hidden"))
    import hidden_module

    with pytest.raises(CompilationError, match="'undeclared' is not among those that 'hidden'"):
        bind(hidden_module.MORE, jnp.ones(1), jnp.ones(1))


@pytest.mark.parametrize("change", [{"disable": ["late"]}, {"allow": []}, {"disable": ["*"]}])
def test_bind_of_a_family_disabled_later(change, site, host_of, plugin_source):
    host = host_of(site.add("late", "late_module", plugin_source("late", "late_p"), family="late",
                            ops=["late_op"]))  # fmt: skip
    op = resolve(host, "ops", "late_op")
    op(jnp.ones(1), jnp.ones(1))
    braintrace.plugins.configure(**change)
    assert record_of(host, "late").state == "disabled"
    with pytest.raises(CompilationError, match="'late_p' is provided by 'late' 1.0, which"):
        op(jnp.ones(1), jnp.ones(1))
    with pytest.raises(AttributeError, match="which is disabled"):
        _ = braintrace.late_op
    braintrace.plugins.configure(allow=None, disable=[])
    assert braintrace.late_op(jnp.ones(1), jnp.ones(1)).tolist() == [1]


def test_isolated_plugins_are_alone_and_forgotten(host_of):
    host = host_of()
    spec = ETPPrimitiveSpec("isolated_p", scale)
    with braintrace.plugins.isolated([plugin_object("alone", [spec])]) as records:
        assert [(r.family, r.state, r.primitives) for r in records] == [
            ("alone", "loaded", ("isolated_p",))
        ]
        assert braintrace.plugins.records() == records
        assert not hasattr(braintrace, "matmul")
        assert bind(spec, jnp.ones(1), jnp.ones(1)).tolist() == [1]
    assert find_primitive("isolated_p") is None
    assert process.host() is host and hasattr(braintrace, "matmul")


def test_isolation_ends_when_a_plugin_is_refused(host_of):
    host = host_of()
    good = plugin_object("first", [ETPPrimitiveSpec("isolated_q", scale)])
    with (
        pytest.raises(PluginError, match="is not a plugin"),
        braintrace.plugins.isolated([good, object()]),
    ):
        pass
    assert find_primitive("isolated_q") is None and process.host() is host


def test_isolation_puts_replaced_rules_back(host_of):
    host_of()
    old = ETPPrimitiveSpec("isolated_r", scale)
    braintrace.register_primitive_spec(old, owner=__name__)
    new = ETPPrimitiveSpec("isolated_r", lambda x, w: x - w)
    with (
        pytest.warns(UserWarning, match="rules of the primitive 'isolated_r' are replaced"),
        braintrace.plugins.isolated(),
    ):
        braintrace.register_primitive_spec(new, owner=__name__)
    assert find_primitive("isolated_r").spec is old
    assert find_primitive("isolated_r").bind(2.0, 3.0) == 6


# --- collisions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_two_distributions_of_one_family(order, make_site, host_of, plugin_source):
    sites = []
    for name in ("twin_a", "twin_b"):
        text = plugin_source("twin", f"{name}_p")
        sites.append(make_site(name).add(name, name, text, family="twin", ops=[f"{name}_op"]))
    host = host_of(*sites[::order])
    twins = [r for r in host.load_all() if r.family == "twin"]
    assert [r.state for r in twins] == ["conflict", "conflict"]
    assert find_primitive("twin_a_p") is None and find_primitive("twin_b_p") is None
    assert not {"twin_a", "twin_b"} & set(sys.modules)
    with pytest.raises(PluginError, match="'twin-b' 1.0 provides the family 'twin' too"):
        resolve(host, "ops", "twin_a_op")


@pytest.mark.parametrize("order", [1, -1])
def test_one_name_from_two_distributions(order, make_site, host_of, plugin_source):
    sites = []
    for name in ("same_a", "same_b"):
        text = plugin_source(name, f"{name}_p")
        sites.append(make_site(name).add(name, name, text, family=name, ops=["same"]))
    host = host_of(*sites[::order])
    with pytest.raises(PluginError, match="provided by 'same-a' 1.0 and 'same-b' 1.0; none of"):
        resolve(host, "ops", "same")
    assert "same" not in available(host, "ops")
    assert not {"same_a", "same_b"} & set(sys.modules)


def test_official_names_belong_to_official_distributions(site, host_of, plugin_source, monkeypatch):
    text = plugin_source("thief", "thief_p")
    site.add("thief", "thief_module", text, family="thief", ops=["matmul", "to_come"])
    monkeypatch.setitem(OFFICIAL["ops"], "to_come", "braintrace-to-come")
    host = host_of(site)
    assert resolve(host, "ops", "matmul").__module__.startswith("braintrace_dense")
    with pytest.raises(PluginError, match="'braintrace-to-come', which is not installed"):
        resolve(host, "ops", "to_come")
    assert "thief_module" not in sys.modules


def test_core_names_win(site, host_of, plugin_source):
    text = plugin_source("shadow", "shadow_p")
    host_of(site.add("shadow", "shadow_module", text, family="shadow", ops=["compile", "nn"]))
    assert braintrace.compile.__module__.startswith("braintrace.")
    assert braintrace.nn.__name__ == "braintrace.nn"


# --- life cycle ----------------------------------------------------------------------------------


def test_denied_plugins_are_not_imported(site, host_of, plugin_source):
    text = plugin_source("denied", "denied_p")
    site.add("denied-dist", "denied_module", text, family="denied", ops=["denied_op"])
    for settings in ({"disable": frozenset({"denied-dist"})}, {"allow": frozenset({"dense"})}):
        host = host_of(site, **settings)
        host.load_all()
        assert record_of(host, "denied").state == "disabled"
    assert "denied_module" not in sys.modules


def test_refresh_gives_a_failed_plugin_another_chance(site, host_of, plugin_source):
    site.add("mended", "mended_module", "raise OSError('not yet')", family="mended", ops=["mend"])
    host = host_of(site)
    host.load_all()
    assert record_of(host, "mended").state == "failed"
    module = site.folder / "mended_module.py"
    module.write_text(plugin_source("mended", "mended_p") + "# longer, so recompiled\n")
    host.refresh()
    assert record_of(host, "mended").state == "discovered"
    assert resolve(host, "ops", "mend")(jnp.ones(1), jnp.ones(1)).tolist() == [1]


def test_refresh_reads_the_version_of_a_loaded_plugin_again(site, host_of, plugin_source):
    site.add("newer", "newer_module", plugin_source("newer", "newer_p"), family="newer")
    host = host_of(site)
    host.load_all()
    metadata = site.folder / "newer-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    host.refresh()
    record = record_of(host, "newer")
    assert (record.version, record.state, record.primitives) == ("1.1", "loaded", ("newer_p",))


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("BRAINTRACE_PLUGINS", "")
    monkeypatch.setenv("BRAINTRACE_DISABLE_PLUGINS", "Dense, my_conv")
    monkeypatch.setenv("BRAINTRACE_STRICT_PLUGINS", "1")
    monkeypatch.setenv("BRAINTRACE_TRACE_PLUGINS", "no")
    expected = Settings(frozenset(), frozenset({"dense", "my-conv"}), strict=True, trace=False)
    assert Settings.from_environment() == expected


def test_trace_reports_every_step(site, host_of, plugin_source, capsys):
    text = plugin_source("traced", "traced_p")
    host_of(site.add("traced", "traced_module", text, family="traced"), trace=True).load_all()
    assert "braintrace.plugins: traced: importing traced_module:plugin" in capsys.readouterr().err


def test_configure_refuses_one_string():
    with pytest.raises(TypeError, match="disable must be an iterable of names, got the string"):
        braintrace.plugins.configure(disable="dense")


def test_bounds_on_core_honour_markers(site, host_of, plugin_source):
    text = plugin_source("marked", "marked_p")
    requires = 'braintrace-core>=9 ; python_version < "3"'
    host = host_of(site.add("marked", "marked_module", text, family="marked", requires=requires))
    assert record_of(host, "marked").state == "discovered"


def test_plain_bounds_are_read_as_the_parser_reads_them():
    bounds = (">=0.1", "<0.2", ">=0.1.0, <0.2", "<0.1.0.0", "<0.10", ">=1.0", ">=0.1,<0.2")
    for version in ("0", "0.1", "0.1.0", "0.1.1", "0.2.0.0", "0.10.1", "1"):
        for text in bounds:
            ours = [f"braintrace-core{text}"]
            parsed = metadata._parsed_bounds(ours, version)
            assert metadata._plain_bounds(ours, version) == parsed


@pytest.mark.parametrize("bound", ["==0.1.*", "[extra]>=0.1", ">=0.1rc1", ">=0.1; extra == 'a'"])
def test_other_bounds_are_left_to_the_parser(bound):
    assert metadata._plain_bounds([f"braintrace-core{bound}"], "0.1.0") is None


def test_many_threads_register_once(site, run, plugin_source):
    slow = "import time; time.sleep(0.2)\n" + plugin_source("crowd", "crowd_p")
    site.add("crowd", "crowd", slow, family="crowd", ops=["crowd_op"])
    code = """
        import threading
        import braintrace
        barrier, found, errors = threading.Barrier(32), [], []
        def resolve(i):
            barrier.wait()
            try:
                if i == 0:
                    import crowd
                    found.append(id(crowd.op))
                else:
                    found.append(id(braintrace.crowd_op))
            except BaseException as error:
                errors.append(repr(error))
        threads = [threading.Thread(target=resolve, args=(i,), daemon=True) for i in range(32)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        states = [r.state for r in braintrace.plugins.records() if r.family == "crowd"]
        out([len(found), len(set(found)), errors, states])
    """
    assert run(code, site) == [32, 1, [], ["loaded"]]


# --- what a plugin says of itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"family": ""}, ValueError, "family must not be empty"),
        ({"family": 3}, TypeError, "family must be a string, got 3"),
        ({"family": "x", "api": 1}, TypeError, "api must be"),
        ({"family": "x", "api": ("1", "0")}, TypeError, "api must be"),
        ({"family": "x", "exports": ["op"]}, TypeError, "exports must map"),
        ({"family": "x", "exports": {"layers": ()}}, ValueError, "unknown kinds \\['layers'\\]"),
        ({"family": "x", "exports": {"ops": "matmul"}}, TypeError, "must be a tuple of names"),
    ],
)
def test_plugin_info_is_checked(arguments, error, text):
    with pytest.raises(error, match=text):
        PluginInfo(**arguments)


def test_an_account_that_differs_from_the_metadata_is_a_finding(site, host_of, plugin_source):
    text = plugin_source("liar", "liar_p", version="7")
    host = host_of(site.add("liar", "liar_module", text, family="liar", ops=["liar_op"]))
    host.load_all()
    assert record_of(host, "liar").problems == (
        "gives '7' as its version in braintrace_plugin_info and '1.0' in its metadata; "
        "make them the same and install it again",
    )


def test_the_built_in_plugins_agree_with_their_metadata(host_of):
    names = {d.removeprefix("braintrace-") for kind in OFFICIAL.values() for d in kind.values()}
    records = host_of(allow=frozenset(names)).load_all()
    official = {r.family: r.problems for r in records if r.distribution.startswith("braintrace-")}
    assert official == dict.fromkeys(names, ())
