# SPDX-License-Identifier: Apache-2.0
"""What a user reads when a name cannot be had: the same text from every kind of access."""

from __future__ import annotations

import textwrap

import pytest

PUBLIC = {"ops": "braintrace.lora_matmul", "nn": "braintrace.nn.LoRA"}
BROKEN = 'raise OSError("libfoo.so is missing")\n'
INSTALLED = "{name} is provided by 'braintrace-lora' 1.0, which "

ACCESS = """
    import braintrace, braintrace.nn
    module, _, name = PUBLIC.rpartition(".")
    def attempt(statement):
        try:
            exec(statement, {"braintrace": braintrace})
        except BaseException as error:
            kinds = [k.__name__ for k in type(error).__mro__]
            return [str(error), kinds, repr(error.__cause__)]
        return ["no error", [], ""]
    out({
        "attribute": attempt(PUBLIC),
        "from": attempt(f"from {module} import {name}"),
        "import": attempt(f"import {PUBLIC}"),
        "hasattr": hasattr(sys.modules[module], name),
        "dir": name in dir(sys.modules[module]),
        "imported": "fake_lora" in sys.modules,
    })
"""

STATES = {
    "missing": "{name} is provided by 'braintrace-lora', which is not installed. "
    "Run: pip install braintrace-lora (from files: its wheel, or plugins/lora of a checkout)",
    "failed": INSTALLED + "failed to load (OSError: libfoo.so is missing)",
    "disabled": INSTALLED + "is disabled (by BRAINTRACE_DISABLE_PLUGINS or "
    "braintrace.plugins.configure); take it off that list to use it",
    "not allowed": INSTALLED + "is disabled: it is not among the allowed plugins "
    "(BRAINTRACE_PLUGINS or braintrace.plugins.configure); add it to that list to use it",
    "incompatible": INSTALLED + "needs braintrace-core>=9, but braintrace-core 0.1.0 is "
    "installed. Run: pip install --upgrade braintrace-core braintrace-lora",
    "too old": INSTALLED + "needs braintrace-core<0.1, but braintrace-core 0.1.0 is "
    "installed. Run: pip install --upgrade braintrace-core braintrace-lora",
    "other API": INSTALLED + "is written for plugin API 2, but braintrace-core 0.1.0 offers 1.0. "
    "Run: pip install --upgrade braintrace-core braintrace-lora",
    "newer API": INSTALLED + "is written for plugin API 1.9, but braintrace-core 0.1.0 offers "
    "1.0. Run: pip install --upgrade braintrace-core braintrace-lora",
    "unreadable": "{name} is provided by 'braintrace-lora', which has metadata that cannot be read "
    "(ValueError: METADATA has no name); install it again",
}


def prepare(state, site, plugin_source):
    """Install what brings about the state; returns the environment variables."""
    text = plugin_source("lora", "fake_lora", api=(1, 9) if state == "newer API" else (1, 0))
    how = {"family": "lora", "ops": ["lora_matmul"], "nn": ["LoRA"]}
    bounds = {"incompatible": "braintrace-core>=9", "too old": "braintrace-core<0.1"}
    how["requires"] = bounds.get(state, "braintrace-core>=0.1,<0.2")
    if state == "other API":
        how["group"] = "braintrace.plugins.v2"
    if state == "missing":
        site.hide("braintrace-lora")
    else:
        site.add("braintrace-lora", "fake_lora", BROKEN if state == "failed" else text, **how)
    if state == "unreadable":
        site.hide("braintrace-lora")
        (site.folder / "braintrace_lora-1.0.dist-info" / "METADATA").write_text("Version: 1.0\n")
    return {
        "disabled": {"BRAINTRACE_DISABLE_PLUGINS": "dense, LORA"},
        "not allowed": {"BRAINTRACE_PLUGINS": "dense"},
    }.get(state, {})


def access(kind):
    return f"PUBLIC = {PUBLIC[kind]!r}\n{textwrap.dedent(ACCESS)}"


@pytest.mark.parametrize("kind", sorted(PUBLIC))
@pytest.mark.parametrize("state", sorted(STATES))
def test_message_matrix(state, kind, site, run, plugin_source):
    env = prepare(state, site, plugin_source)
    check_messages(run(access(kind), site, env=env), state, kind)


@pytest.mark.parametrize("state", ["missing", "failed", "incompatible", "disabled", "unreadable"])
def test_messages_when_the_backport_of_metadata_is_imported_first(state, site, run, plugin_source):
    env = prepare(state, site, plugin_source)
    code = "import importlib_metadata\n" + access("ops")
    check_messages(run(code, site, env=env), state, "ops")


def check_messages(found, state, kind):
    expected = {"attribute": "AttributeError", "from": "ImportError", "import": "ImportError"}
    for way, error in expected.items():
        text, kinds, cause = found[way]
        assert text == STATES[state].replace("{name}", PUBLIC[kind])
        assert error in kinds
        assert ("OSError" in cause) == (state == "failed")
    assert found["hasattr"] is False
    assert found["imported"] == (state == "newer API")
    if state not in ("failed", "newer API"):  # known only after loading
        assert found["dir"] is False


def test_who_names_an_official_family_changes_nothing(site, run, plugin_source):
    prepare("sound", site, plugin_source)
    text = plugin_source("lora", "other_lora")
    site.add("other-lora", "other_lora", text, family="lora", version="2.0")
    assert run(access("ops"), site)["attribute"][0] == "no error"


@pytest.mark.parametrize(
    "variables",
    [
        {"BRAINTRACE_DISABLE_PLUGINS": "dense"},
        {"BRAINTRACE_PLUGINS": ""},
        {"BRAINTRACE_DISABLE_PLUGINS": "*"},
    ],
)
def test_a_model_with_a_primitive_of_a_disabled_family_does_not_compile(run, variables):
    code = """
        import braintrace, brainstate, jax.numpy as jnp
        from braintrace_dense.nn import ValinaRNNCell
        try:
            braintrace.compile(ValinaRNNCell(2, 3), "d_rtrl", jnp.ones(2))
        except braintrace.CompilationError as error:
            out(str(error))
    """
    text = run(code, env=variables)
    assert (
        "the primitive 'etp_mv' is provided by 'braintrace-dense' 0.1.0, which is disabled" in text
    )


CELL = """
import braintrace, brainstate, jax.numpy as jnp
import fake_lora_ops

class Cell(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones(3))
        self.h = brainstate.HiddenState(jnp.zeros(3))

    def update(self, x):
        self.h.value = jnp.tanh(0.5 * self.h.value + fake_lora_ops.op(x, self.w.value))
        return self.h.value

try:
    braintrace.compile(Cell(), "d_rtrl", jnp.ones(3))
except braintrace.CompilationError as error:
    out([str(error), repr(error.__cause__)])
"""


@pytest.mark.parametrize("state", ["failed", "disabled", "incompatible"])
def test_a_model_with_a_primitive_of_an_unusable_family_does_not_compile(
    state, site, run, plugin_source
):
    env = prepare(state, site, plugin_source)
    ops = plugin_source("lora", "fake_lora_p")
    (site.folder / "fake_lora_ops.py").write_text(ops.replace("def scale", OWNED + "def scale"))
    text, cause = run(CELL, site, env=env)
    expected = STATES[state].replace("{name}", "the primitive 'fake_lora_p'")
    assert text.startswith(expected)
    assert ("OSError" in cause) == (state == "failed")


#: The operations are importable when the plugin object is not, and belong to its package.
OWNED = '__name__ = "fake_lora"\n\n\n'
