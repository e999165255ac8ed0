# SPDX-License-Identifier: Apache-2.0
"""Loading, isolation, collisions, selection and registration, with made-up plugins."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import pytest

import braintrace
from braintrace.names import OFFICIAL
from braintrace.ops.primitive import find_primitive
from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo
from braintrace.plugins import PluginError
from braintrace.plugins.host import _problems, brief, why_nothing_loads
from braintrace.plugins.metadata import Candidate
from braintrace.plugins.resolution import resolve
from tests.sites import plugin_object, record_of, scale

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


def test_a_plugin_that_binds_while_it_is_imported(site, host_of, plugin_source):
    text = plugin_source("eager", "eager_p") + "\nimport jax.numpy as jnp\nop(jnp.ones(1), 2.0)\n"
    host = host_of(site.add("eager", "eager_module", text, family="eager", ops=["eager"]))
    with pytest.raises(PluginError, match="while it is being imported"):
        resolve(host, "ops", "eager")


def test_the_family_of_the_entry_point_and_of_the_plugin_must_agree(site, host_of, plugin_source):
    site.add("two-names", "two_names", plugin_source("first", "first_p"), family="second")
    host = host_of(site)
    assert "names the family 'first'" in {r.family: r for r in host.load_all()}["second"].reason
    assert find_primitive("first_p") is None


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
    with pytest.raises(PluginError, match="the family 'dense' is that of 'braintrace-dense'"):
        host.register(plugin_object("dense", []))
    assert record_of(host, "dense").state == "discovered"


@pytest.mark.parametrize("named", ["dense", "Dense"])
def test_the_family_of_an_official_distribution_is_its_own(named, site, host_of, plugin_source):
    """Whoever else names it is not used; where the official one may not be used, it is."""
    text = plugin_source(named, f"rival_{named}")
    host = host_of(site.add("a-rival", f"rival_{named}", text, family=named, ops=["rival"]))
    states = {r.distribution: r.state for r in host.load_all()}
    assert (states["braintrace-dense"], states["a-rival"]) == ("loaded", "conflict")
    with pytest.raises(PluginError, match="'dense' is that of 'braintrace-dense'. Uninstall it"):
        resolve(host, "ops", "rival")
    host.configure(disable=["braintrace-dense"])
    assert resolve(host, "ops", "rival")(2.0, 3.0) == 6.0


def test_metadata_that_cannot_be_read_is_told_where_it_is_asked_for(site, host_of):
    broken = site.folder / "braintrace_to_come-1.0.dist-info"
    broken.mkdir(parents=True)
    (broken / "entry_points.txt").write_text("[braintrace.ops]\nno equals sign\n")
    host = host_of(site)
    record = record_of(host, "to-come")
    assert (record.distribution, record.state) == ("braintrace-to-come", "failed")
    assert record.reason.startswith("has metadata that cannot be read (")
    with pytest.raises(PluginError, match="metadata that cannot be read.*install it again"):
        host.load_all(strict=True)
    host.configure(disable=["to-come"])
    assert record_of(host, "to-come").state == "disabled"


def test_names_that_no_plugin_has_are_told_once(site, host_of, plugin_source):
    site.add("mine", "mine", plugin_source("mine", "mine_p"), family="own")
    known = {"own", "mine", "braintrace_sparse", "Dense"}
    host = host_of(site, allow=known | {"dens"}, disable={"*", "nobody"})
    with pytest.warns(UserWarning) as issued:
        host.records()
    first, second = (str(warning.message) for warning in issued)
    assert first.startswith("BRAINTRACE_PLUGINS or braintrace.plugins.configure(allow=...) names ")
    assert first.endswith("'dens', but no plugin is called so; did you mean 'dense'?")
    assert second.endswith("names 'nobody', but no plugin is called so")
    host.records()
    with pytest.warns(
        UserWarning, match=r"configure\(disable=.*names 'sparce'.*'sparse'"
    ) as issued:
        host.configure(disable={"sparce"})
    assert len(issued) == 1
    assert [*host.unknown_names()] == [
        ("BRAINTRACE_PLUGINS", "dens"),
        ("BRAINTRACE_DISABLE_PLUGINS", "sparce"),
    ]


def test_what_all_plugins_need_is_not_laid_to_one(site, host_of, plugin_source, monkeypatch):
    text = "import brainstate\n" + plugin_source("healthy", "healthy_p")
    host = host_of(site.add("healthy", "healthy_module", text, family="healthy"))
    assert why_nothing_loads() == ""
    shadow = "raise PermissionError(13, 'Permission denied', '/home/.cache/brainevent/0')"
    (site.folder / "brainstate.py").write_text(shadow)
    monkeypatch.delitem(sys.modules, "brainstate")
    host.load_all()
    reason = record_of(host, "healthy").reason
    assert reason.startswith("cannot be loaded, because brainstate itself cannot be imported (Perm")
    assert reason.endswith("Set BRAINEVENT_CACHE_DIR to a folder that can be written to")


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


def test_trace_reports_every_step(site, host_of, plugin_source, capsys):
    text = plugin_source("traced", "traced_p")
    host_of(site.add("traced", "traced_module", text, family="traced"), trace=True).load_all()
    assert "braintrace.plugins: traced: importing traced_module:plugin" in capsys.readouterr().err


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


def test_an_account_that_differs_from_the_metadata_is_a_finding(site, host_of, plugin_source):
    text = plugin_source("liar", "liar_p", version="7")
    host = host_of(site.add("liar", "liar_module", text, family="liar", ops=["liar_op"]))
    host.load_all()
    assert record_of(host, "liar").problems == (
        "gives '7' as its version in braintrace_plugin_info and '1.0' in its metadata; "
        "make them the same and install it again",
    )


def test_an_account_may_name_an_export_twice():
    candidate = Candidate("twice", "1.0", "", exports={("ops", "name"): None})
    info = PluginInfo("twice", version="1.0", exports={"ops": ("name", "name")})
    assert _problems(candidate, info) == ()


def test_the_built_in_plugins_agree_with_their_metadata(host_of):
    names = {d.removeprefix("braintrace-") for kind in OFFICIAL.values() for d in kind.values()}
    records = host_of(allow=frozenset(names)).load_all()
    official = {r.family: r.problems for r in records if r.distribution.startswith("braintrace-")}
    assert official == dict.fromkeys(names, ())


def test_what_is_brief_of_an_exception():
    assert brief(OSError("one\ntwo")) == "OSError: one"
    assert brief(MemoryError()) == "MemoryError"


def test_a_plugin_of_another_group_is_incompatible(site, host_of, plugin_source):
    text = plugin_source("future", "future_p")
    site.add("future", "future_module", text, family="future", group="braintrace.plugins.v2")
    record = record_of(host_of(site), "future")
    assert record.state == "incompatible"
    assert record.reason.startswith("is written for plugin API 2, but braintrace-core")
    assert record.reason.endswith("Run: pip install --upgrade braintrace-core future")


def test_plugins_in_use_are_in_the_order_of_their_names(host_of):
    host = host_of()
    for name in ("zeta", "alpha"):
        host.register(plugin_object(name, []))
    assert [c.family for c, _ in host.loaded()] == ["alpha", "zeta"]
    host.configure(disable=frozenset({"alpha"}))
    assert [c.family for c, _ in host.loaded()] == ["zeta"]
