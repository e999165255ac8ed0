# SPDX-License-Identifier: Apache-2.0
"""What a user reads when a name cannot be had: the same text from every kind of access."""

from __future__ import annotations

import pytest

BROKEN = 'raise OSError("libfoo.so is missing")\n'
INSTALLED = "braintrace.lora_matmul is provided by 'braintrace-lora' 1.0, which "

ACCESS = """
    import braintrace
    def attempt(statement):
        try:
            exec(statement, {"braintrace": braintrace})
        except BaseException as error:
            kinds = [k.__name__ for k in type(error).__mro__]
            return [str(error), kinds, repr(error.__cause__)]
        return ["no error", [], ""]
    out({
        "attribute": attempt("braintrace.lora_matmul"),
        "from": attempt("from braintrace import lora_matmul"),
        "import": attempt("import braintrace.lora_matmul"),
        "hasattr": hasattr(braintrace, "lora_matmul"),
        "dir": "lora_matmul" in dir(braintrace),
        "imported": "fake_lora" in sys.modules,
    })
"""

STATES = {
    "missing": "braintrace.lora_matmul is provided by 'braintrace-lora', which is not installed. "
    "Run: pip install braintrace-lora",
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
    "conflict": INSTALLED + "is not used: 'other-lora' 2.0 provides the family 'lora' too. "
    "Uninstall one of them, or disable one with BRAINTRACE_DISABLE_PLUGINS",
}


def prepare(state, site, plugin_source):
    """Install what brings about the state; returns the environment variables."""
    text = plugin_source("lora", "fake_lora", api=(1, 9) if state == "newer API" else (1, 0))
    how = {"family": "lora", "ops": ["lora_matmul"]}
    bounds = {"incompatible": "braintrace-core>=9", "too old": "braintrace-core<0.1"}
    how["requires"] = bounds.get(state, "braintrace-core>=0.1,<0.2")
    if state == "other API":
        how["group"] = "braintrace.plugins.v2"
    if state != "missing":
        site.add("braintrace-lora", "fake_lora", BROKEN if state == "failed" else text, **how)
    if state == "conflict":
        site.add("other-lora", "other_lora", text, family="lora", version="2.0")
    return {
        "disabled": {"BRAINTRACE_DISABLE_PLUGINS": "dense, LORA"},
        "not allowed": {"BRAINTRACE_PLUGINS": "dense"},
    }.get(state, {})


@pytest.mark.parametrize("state", sorted(STATES))
def test_message_matrix(state, site, run, plugin_source):
    env = prepare(state, site, plugin_source)
    found = run(ACCESS, site, env=env)
    expected = {"attribute": "AttributeError", "from": "ImportError", "import": "ImportError"}
    for access, kind in expected.items():
        text, kinds, cause = found[access]
        assert text == STATES[state]
        assert kind in kinds
        assert ("OSError" in cause) == (state == "failed")
    assert found["hasattr"] is False
    assert found["imported"] == (state == "newer API")
    if state not in ("failed", "newer API"):  # known only after loading
        assert found["dir"] is False


def test_disabling_one_of_two_rivals_settles_the_conflict(site, run, plugin_source):
    env = prepare("conflict", site, plugin_source)
    env["BRAINTRACE_DISABLE_PLUGINS"] = "other_lora"
    assert run(ACCESS, site, env=env)["attribute"][0] == "no error"


def test_layers_have_the_same_message(run):
    code = """
        import braintrace
        texts = []
        for statement in ("braintrace.nn.LoRA", "from braintrace.nn import LoRA",
                          "import braintrace.nn.LoRA"):
            try:
                exec(statement)
            except (AttributeError, ImportError) as error:
                texts.append(str(error))
        out([texts, hasattr(braintrace.nn, "LoRA")])
    """
    texts, has = run(code, env={"BRAINTRACE_PLUGINS": ""})
    assert (
        texts
        == [
            "braintrace.nn.LoRA is provided by 'braintrace-lora', which is not installed. "
            "Run: pip install braintrace-lora"
        ]
        * 3
    )
    assert has is False


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
