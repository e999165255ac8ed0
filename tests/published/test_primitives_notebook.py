# SPDX-License-Identifier: Apache-2.0
"""The notebook on primitives, cell by cell: each test is a cell, and prints what it prints there.

The numbers in the names are those of the cells. Rewritten, with public names; all of them print
what is stored, without an exception.
"""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace

pytestmark = pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")

X, W = jnp.ones((4, 3), jnp.float32), jnp.ones((3, 5), jnp.float32)


def test_cell_5_matmul(prints):
    print("Batched output shape:", braintrace.matmul(X, W).shape)
    print("Unbatched output shape:", braintrace.matmul(X[0], W).shape)
    prints("""
        Batched output shape: (4, 5)
        Unbatched output shape: (5,)
    """)


def test_cell_6_bias(prints):
    print("With bias:", braintrace.matmul(X, W, bias=jnp.zeros(5)).shape)
    prints("With bias: (4, 5)")


def test_cell_8_element_wise(prints):
    gate = jnp.array([0.5, -0.3, 0.8, 0.1])
    print("Identity:", braintrace.element_wise(gate))
    print("Sigmoid:", braintrace.element_wise(gate, fn=jax.nn.sigmoid))
    print("Abs:", braintrace.element_wise(gate, fn=jnp.abs))
    prints("""
        Identity: [ 0.5 -0.3  0.8  0.1]
        Sigmoid: [0.62245935 0.4255575  0.6899745  0.5249792 ]
        Abs: [0.5 0.3 0.8 0.1]
    """)


def test_cells_10_and_11_conv(prints):
    y = braintrace.conv(
        jnp.ones((2, 16, 3)),
        jnp.ones((4, 3, 8)),
        strides=(1,),
        padding="SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    print("Conv1D output shape:", y.shape)
    y = braintrace.conv(
        jnp.ones((2, 32, 32, 3)),
        jnp.ones((3, 3, 3, 16)),
        strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    print("Conv2D output shape:", y.shape)
    prints("""
        Conv1D output shape: (2, 16, 8)
        Conv2D output shape: (2, 32, 32, 16)
    """)


def test_cell_13_sparse_matmul(prints):
    kept = jax.random.uniform(jax.random.PRNGKey(0), (50, 50)) < 0.1
    dense = jnp.where(kept, jax.random.normal(jax.random.PRNGKey(1), (50, 50)), 0.0)
    matrix = u.sparse.CSR.fromdense(dense)
    y = braintrace.sparse_matmul(jnp.ones((4, 50)), matrix.data, sparse_mat=matrix)
    print("Sparse matmul output shape:", y.shape)
    prints("Sparse matmul output shape: (4, 50)")


def test_cell_15_lora_matmul(prints):
    lora_b, lora_a = (
        jax.random.normal(jax.random.PRNGKey(seed), shape, jnp.float32) * 0.01
        for seed, shape in enumerate([(64, 4), (4, 32)])
    )
    y = braintrace.lora_matmul(jnp.ones((8, 64)), lora_b, lora_a, alpha=2.0)
    print("LoRA output shape:", y.shape)
    print("LoRA output (first sample):", y[0])
    prints("""
        LoRA output shape: (8, 32)
        LoRA output (first sample): [ 1.2993842e-04  2.9886682e-03 -5.7171844e-04  1.7000248e-03
          2.8961061e-03 -1.4734608e-03  1.5826351e-03  1.1692893e-04
         -5.4561032e-04 -1.3646147e-03  1.0654312e-04  2.0160272e-03
          3.1371990e-03  1.8710974e-03  2.9124888e-03 -8.2047645e-04
          9.7736251e-04 -1.1875220e-03 -2.1796541e-03 -5.8191392e-05
         -1.5415263e-03 -1.3381819e-03 -2.1044153e-03 -8.4472442e-04
          1.6430757e-05 -2.9564608e-04  4.5550600e-04 -1.6011632e-03
         -1.4516843e-03 -1.3209208e-03  3.2850087e-04 -6.0276774e-04]
    """)


def test_cell_17_units(prints):
    y = braintrace.matmul(X * u.volt, W * u.siemens, bias=jnp.zeros(5) * u.amp)
    print("Output:", y)
    print("Unit :", u.get_unit(y))
    prints("""
        Output: [[3. 3. 3. 3. 3.]
         [3. 3. 3. 3. 3.]
         [3. 3. 3. 3. 3.]
         [3. 3. 3. 3. 3.]] A
        Unit : A
    """)


def test_cells_19_to_23_transformations(prints):
    def total(w, x=X):
        return braintrace.matmul(x, w).sum()

    print("JIT output shape:", jax.jit(braintrace.matmul)(X, W).shape)
    grads = jax.grad(total)(W)
    print("Gradient shape:", grads.shape)
    print("Gradient values:\n", grads)
    xs = jnp.ones((8, 4, 3))
    print("vmap output shape:", jax.vmap(lambda x: braintrace.matmul(x, W))(xs).shape)
    y, tangent = jax.jvp(braintrace.matmul, (X, W), (jnp.ones_like(X), jnp.ones_like(W)))
    print("JVP primal shape:", y.shape)
    print("JVP tangent shape:", tangent.shape)
    each = jax.jit(lambda xs, w: jax.vmap(lambda x: jax.grad(total)(w, x))(xs))(xs, W)
    print("Per-sample gradients shape:", each.shape)
    prints("""
        JIT output shape: (4, 5)
        Gradient shape: (3, 5)
        Gradient values:
         [[4. 4. 4. 4. 4.]
         [4. 4. 4. 4. 4.]
         [4. 4. 4. 4. 4.]]
        vmap output shape: (8, 4, 5)
        JVP primal shape: (4, 5)
        JVP tangent shape: (4, 5)
        Per-sample gradients shape: (8, 3, 5)
    """)


NAMES = "conv elemwise lora_mm lora_mv mm mv sp_mm sp_mv".split()
LIST = "".join(f"  etp_{name}\n" for name in NAMES)
RULES = {
    "Trace propagation rules (ETP_RULES_YW_TO_W)": braintrace.ETP_RULES_YW_TO_W,
    "Weight gradient rules (ETP_RULES_XY_TO_DW)": braintrace.ETP_RULES_XY_TO_DW,
    "D-RTRL init rules (ETP_RULES_INIT_DRTRL)": braintrace.ETP_RULES_INIT_DRTRL,
    "pp_prop init rules (ETP_RULES_INIT_PP)": braintrace.ETP_RULES_INIT_PP,
}


FAMILIES = {f"braintrace_{family}" for family in "conv dense elemwise lora sparse".split()}


def of_then(primitives):
    """Those of the families of then, by name: there may be others, and tests register some."""
    return sorted((p for p in primitives if p.owner in FAMILIES), key=lambda p: p.name)


def test_cell_26_registries(prints):
    braintrace.plugins.load_all(strict=True)
    print("All ETP primitives:")
    for p in of_then(braintrace.ETP_PRIMITIVES):
        print(f"  {p.name}{' [batched]' if p in braintrace.BATCHED_PRIMITIVES else ''}")
    for title, rules in RULES.items():
        print(f"\n{title}:")
        for p in of_then(rules.keys()):
            print(f"  {p.name}")
    batched = LIST.replace("_mm\n", "_mm [batched]\n").replace("_conv\n", "_conv [batched]\n")
    prints(f"All ETP primitives:\n{batched}\n" + "".join(f"{t}:\n{LIST}\n" for t in RULES))


# --- a primitive of one's own, in two ways ------------------------------------------------------


def product(x, w, *bias, scale=1.0, has_bias=False):
    return scale * (x @ w) + (bias[0] if has_bias else 0.0)


def trainable(params):
    return {"weight": 1, "bias": 2} if params.get("has_bias") else {"weight": 1}


def yw_to_w(hidden_dim, trace, *, scale=1.0, has_bias=False):
    weight = trace["weight"] * jnp.expand_dims(hidden_dim, axis=-2) * scale
    return {"weight": weight, **({"bias": trace["bias"] * hidden_dim} if has_bias else {})}


def xy_to_dw(x, hidden_dim, weights, *, scale=1.0, has_bias=False):
    def forward(w):
        return product(x, w["weight"], w.get("bias"), scale=scale, has_bias=has_bias)

    return jax.vjp(forward, weights)[1](hidden_dim)[0]


def init_drtrl(x_var, y_var, weight_vars, num_hidden_state):
    batch = x_var.aval.shape[0]
    return {
        key: jnp.zeros((batch, *var.aval.shape, num_hidden_state))
        for key, var in weight_vars.items()
    }


def init_pp(x_var, y_var, weight_vars, num_hidden_state):
    return jnp.zeros((*y_var.aval.shape, num_hidden_state), y_var.aval.dtype)


RULES_OF_ITS_OWN = {
    "yw_to_w": yw_to_w,
    "xy_to_dw": xy_to_dw,
    "init_drtrl": init_drtrl,
    "init_pp": init_pp,
}


@pytest.fixture(scope="module")
def scaled_p():
    return braintrace.register_primitive("etp_scaled_mm", product, batched=True)


def test_cell_28_register(scaled_p, prints):
    print("Primitive registered:", scaled_p)
    print("Type:", type(scaled_p).__name__)
    prints("""
        Primitive registered: etp_scaled_mm
        Type: ETPPrimitive
    """)


def test_cell_29_rules(scaled_p, prints):
    scaled_p.register_etp_rules(**RULES_OF_ITS_OWN)
    for (key, column), rules in zip(
        [("yw_to_w", ":  "), ("xy_to_dw", ": "), ("init_drtrl", ":"), ("init_pp", ":")],
        RULES.values(),
        strict=True,
    ):
        print(f"{key} registered{column}", scaled_p in rules)
    prints("""
        yw_to_w registered:   True
        xy_to_dw registered:  True
        init_drtrl registered: True
        init_pp registered:   True
    """)


def test_cell_30_bind(scaled_p, prints):
    y = scaled_p.bind(X, W, scale=2.0, has_bias=False)
    print("Output shape :", y.shape)
    print("Matches 2·xw :", bool(jnp.allclose(y, 2.0 * (X @ W))))
    b = jnp.full(5, 0.1, jnp.float32)
    print("With bias    :", scaled_p.bind(X, W, b, scale=2.0, has_bias=True)[0])
    prints("""
        Output shape : (4, 5)
        Matches 2·xw : True
        With bias    : [6.1 6.1 6.1 6.1 6.1]
    """)


def test_cell_31_transformations_of_ones_own(scaled_p, prints):
    def scaled(x, w):
        return scaled_p.bind(x, w, scale=2.0, has_bias=False)

    print("JIT works:", bool(jnp.allclose(jax.jit(scaled)(X, W), 2.0 * (X @ W))))
    print("Grad shape:", jax.grad(lambda w: scaled(X, w).sum())(W).shape)
    print("Vmap output shape:", jax.vmap(scaled, (0, None))(jnp.ones((8, 4, 3)), W).shape)
    prints("""
        JIT works: True
        Grad shape: (3, 5)
        Vmap output shape: (8, 4, 5)
    """)


def test_cell_34_specification(prints):
    spec = braintrace.ETPPrimitiveSpec(
        name="etp_spec_demo",
        impl=product,
        trainable_invars_fn=trainable,
        x_invar_index=0,
        batched=True,
        **RULES_OF_ITS_OWN,
    )
    spec_p = braintrace.register_primitive_spec(spec)
    assert braintrace.get_primitive_spec(spec_p) is spec
    print("trainable (no bias):", spec.resolve_trainable_invars({"has_bias": False}))
    print("trainable (bias)   :", spec.resolve_trainable_invars({"has_bias": True}))
    print("spec bind output  :", spec_p.bind(X, W, scale=3.0, has_bias=False).shape)
    prints("""
        trainable (no bias): {'weight': 1}
        trainable (bias)   : {'weight': 1, 'bias': 2}
        spec bind output  : (4, 5)
    """)


class TinyRNN(brainstate.nn.Module):
    """The recurrent weight is of an ETP operation, that of the input is not."""

    def __init__(self, num_in=4, num_hidden=6):
        super().__init__()
        self.num_in, self.num_hidden = num_in, num_hidden
        shapes = (num_hidden, num_hidden), (num_in, num_hidden)
        self.W_rec, self.W_in = (
            brainstate.ParamState(0.1 * jax.random.normal(jax.random.PRNGKey(seed), shape))
            for seed, shape in enumerate(shapes)
        )

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size or 1, self.num_hidden)))

    def update(self, x):
        drive = x @ self.W_in.value + braintrace.matmul(self.h.value, self.W_rec.value)
        self.h.value = jax.nn.tanh(drive)
        return self.h.value


def test_cell_37_online_learning(prints):
    model = TinyRNN()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = braintrace.D_RTRL(model)
    learner.compile_graph(jnp.zeros((2, model.num_in)))
    relations = learner.graph.hidden_param_op_relations
    print("Compiled ETP relations:", len(relations))
    for relation in relations:
        print("   primitive =", relation.primitive.name, "  trainable keys =", end=" ")
        print(list(relation.trainable_vars.keys()))
    prints("""
        Compiled ETP relations: 1
           primitive = etp_mm   trainable keys = ['weight']
    """)
