# SPDX-License-Identifier: Apache-2.0
"""``sparse_matmul``: values, formats, transformations, units and errors, against dense products."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit
from jax.experimental.sparse import BCOO
from saiunit.sparse import COO, CSC, CSR

from braintrace_sparse import _ops, sparse_matmul
from braintrace_sparse._matrices import entries_of
from braintrace_sparse._primitives import DENSE_BATCH, DENSE_SIZE

IN, OUT, BATCH = 4, 3, 5
# an empty row (1), an empty column (2), and one position twice, in the order of the rows
ROW, COL = np.array([0, 0, 2, 2, 3]), np.array([0, 1, 1, 1, 0])
NNZ = len(ROW)
SHUFFLED = np.array([3, 0, 4, 2, 1])


def pointers(index, size):
    return np.concatenate([[0], np.cumsum(np.bincount(index, minlength=size))])


def csr(kind, data):
    return kind((data, COL, pointers(ROW, IN)), shape=(IN, OUT))


def csc(kind, data):
    order = np.argsort(COL, kind="stable")
    return kind((data[order], ROW[order], pointers(COL, OUT)), shape=(IN, OUT))


def coo(kind, data):
    return kind((data[SHUFFLED], ROW[SHUFFLED], COL[SHUFFLED]), shape=(IN, OUT))


def bcoo(kind, data):
    indices = jnp.stack([ROW[SHUFFLED], COL[SHUFFLED]], axis=1)
    return kind((data[SHUFFLED], indices), shape=(IN, OUT))


FORMATS = {"CSR": (csr, CSR), "CSC": (csc, CSC), "COO": (coo, COO), "BCOO": (bcoo, BCOO)}


def draw(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def built(name="CSR", data=None):
    make, kind = FORMATS[name]
    return make(kind, draw(NNZ) if data is None else data)


def dense_of(values, row=ROW, col=COL, shape=(IN, OUT)):
    return jnp.zeros(shape, values.dtype).at[row, col].add(values)


def arrays(lead=(), has_bias=True):
    return (draw(*lead, IN), draw(NNZ, seed=1), *([draw(OUT)] if has_bias else []))


def ours(x, weight, bias=None):
    return sparse_matmul(x, weight, sparse_mat=built(), bias=bias)


def reference(x, weight, bias=None):
    y = jnp.einsum("...i,io->...o", x, dense_of(weight))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def assert_same(got, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-12), got, expected)


def bound_in(fun, *args):
    """Names of the ETP primitives in a jaxpr without loops."""
    names = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            names.extend([eqn.primitive.name] * eqn.primitive.name.startswith("etp_"))
            if "jaxpr" in eqn.params:
                visit(eqn.params["jaxpr"])

    visit(jax.make_jaxpr(fun)(*args))
    return names


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lead", [(), (1,), (DENSE_BATCH,)])
def test_every_format_equals_the_matrix_itself(name, lead):
    x, matrix = draw(*lead, IN), built(name)
    y = sparse_matmul(x, matrix.data, sparse_mat=matrix, bias=draw(OUT))
    assert_same(y, x @ matrix.todense() + draw(OUT))


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_may_be_an_argument_of_jit(name):
    x = draw(BATCH, IN)

    @jax.jit
    def product(x, matrix):
        return sparse_matmul(x, matrix.data, sparse_mat=matrix)

    matrix = built(name)
    assert_same(product(x, matrix), x @ matrix.todense())


@pytest.mark.parametrize("make", [csr, csc, coo])
def test_indices_may_be_traced(make):
    """``saiunit`` keeps indices static, so matrices with traced ones are stood in for."""
    kind = {csr: CSR, csc: CSC, coo: COO}[make]
    x, matrix = draw(BATCH, IN), make(kind, draw(NNZ))
    names = ("row", "col") if kind is COO else ("indices", "indptr")

    @jax.jit
    def product(x, data, indices):
        traced = object.__new__(kind)
        for name, value in {"data": data, "shape": (IN, OUT), **indices}.items():
            setattr(traced, name, value)
        return sparse_matmul(x, data, sparse_mat=traced)

    indices = {name: getattr(matrix, name) for name in names}
    assert_same(product(x, matrix.data, indices), x @ matrix.todense())
    grad = jax.grad(lambda data: jnp.sin(product(x, data, indices)).sum())(matrix.data)
    expected = jax.grad(lambda data: jnp.sin(x @ matrix.with_data(data).todense()).sum())(
        matrix.data
    )
    assert_same(grad, expected)


@pytest.mark.parametrize("name", ["CSR", "CSC"])
def test_brainevent(name):
    events = pytest.importorskip("brainevent")
    make, _ = FORMATS[name]
    matrix = make(getattr(events, name), draw(NNZ))
    x = draw(BATCH, IN)
    assert_same(sparse_matmul(x, matrix.data, sparse_mat=matrix), x @ matrix.todense())


@pytest.mark.parametrize("name", ["FixedNumPerPre", "FixedNumPerPost", "Dense"])
def test_brainevent_with_values_of_two_axes(name):
    events = pytest.importorskip("brainevent")
    values, col = draw(IN, 2), np.array([[0, 2], [1, 1], [2, 0], [1, 2]])

    def by_rows(w):
        return jnp.zeros((IN, OUT)).at[np.arange(IN)[:, None], col].add(w)

    matrix, dense = {
        "FixedNumPerPre": (lambda kind: kind((values, col), shape=(IN, OUT)), by_rows),
        "FixedNumPerPost": (
            lambda kind: kind((values, col), shape=(OUT, IN)),
            lambda w: by_rows(w).T,
        ),
        "Dense": (lambda kind: kind(draw(IN, OUT)), lambda w: w),
    }[name]
    matrix = matrix(getattr(events, name))
    x, weight = draw(BATCH, matrix.shape[0]), draw(*matrix.data.shape, seed=1)

    def ours(w):
        return sparse_matmul(x, w, sparse_mat=matrix)

    def plain(w):
        return x @ dense(w)

    assert_same(ours(weight), plain(weight))
    assert_same(jax.grad(scalar(ours))(weight), jax.grad(scalar(plain))(weight))
    with pytest.raises(ValueError, match=rf"must have shape \({matrix.data.shape[0]}, \d\), one"):
        ours(weight[:1])


class Ring(saiunit.sparse.SparseMatrix):
    """A matrix of one's own: two values, of which the second stands twice, and once negative."""

    def __init__(self, data, *, shape):
        super().__init__(data, shape=shape)
        self.data = data

    def with_data(self, data):
        assert data.shape == self.data.shape and data.dtype == self.data.dtype
        assert saiunit.get_unit(data) == saiunit.get_unit(self.data)
        return Ring(data, shape=self.shape)

    def todense(self):
        first, second = self.data
        rows = [[first, 0 * first, -second], [second, first, 0 * first], [0 * first, second, first]]
        return saiunit.math.asarray([saiunit.math.asarray(row) for row in rows])


@pytest.mark.parametrize("unit", [saiunit.UNITLESS, saiunit.mS])
def test_a_matrix_of_another_class(unit):
    x, weight = draw(BATCH, 3), draw(2)
    matrix = Ring(jnp.full(2, jnp.nan, "float32") * unit, shape=(3, 3))

    def ours(w):
        y = sparse_matmul(x, w * unit, sparse_mat=matrix, weight_fn=jnp.sin)
        assert saiunit.get_unit(y) == unit
        return saiunit.get_mantissa(y)

    def plain(w):
        return x @ Ring(jnp.sin(w), shape=(3, 3)).todense()

    assert_same(ours(weight), plain(weight), 1e-6)
    assert_same(jax.grad(scalar(ours))(weight), jax.grad(scalar(plain))(weight), 1e-6)
    assert bound_in(ours, weight) == ["etp_sp_mm"]
    assert entries_of(matrix).nnz == 6  # the trace has no entry where the matrix has none


def test_where_the_values_of_another_class_stand_must_be_known():
    class Traced(Ring):
        def with_data(self, data):
            return Traced(data * self.shift, shape=self.shape)

    @jax.jit
    def product(x, shift):
        matrix = Traced(jnp.ones(2), shape=(3, 3))
        matrix.shift = shift
        return sparse_matmul(x, jnp.ones(2), sparse_mat=matrix)

    with pytest.raises(ValueError, match="sparse_mat, a Traced, .* must be known, so make it outs"):
        product(draw(3), jnp.ones(()))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_value_for_all_entries(shape):
    events = pytest.importorskip("brainevent")
    x, weight = draw(IN), draw(*shape)
    matrix = csr(events.CSR, jnp.ones(shape))
    expected = reference(x, jnp.broadcast_to(weight, (NNZ,)))
    assert_same(sparse_matmul(x, weight, sparse_mat=matrix), expected)


def test_brainevent_is_recognised_only_where_it_is_imported(monkeypatch):
    class CSR:
        data, indices, indptr, shape = draw(NNZ), COL, pointers(ROW, IN), (IN, OUT)

    x = draw(IN)
    monkeypatch.setitem(sys.modules, "brainevent", SimpleNamespace(CSR=CSR))
    assert_same(sparse_matmul(x, CSR.data, sparse_mat=CSR()), reference(x, CSR.data))
    monkeypatch.delitem(sys.modules, "brainevent")
    with pytest.raises(TypeError, match="sparse_mat must be a CSR, CSC or COO .*, got CSR"):
        sparse_matmul(x, CSR.data, sparse_mat=CSR())


def test_the_values_of_the_matrix_are_not_used():
    x, weight = draw(IN), draw(NNZ)
    nothing = built(data=jnp.full(NNZ, jnp.nan))
    assert_same(sparse_matmul(x, weight, sparse_mat=nothing), reference(x, weight))


@pytest.mark.parametrize("lead", [(), (BATCH,), (DENSE_BATCH,)])
def test_entries_outside_the_matrix_are_padding(lead):
    """Nothing is added for them, whatever their value, and their gradient is zero."""
    row, col = np.append(ROW, [IN, 0]), np.append(COL, [OUT, OUT + 4])
    matrix = BCOO((jnp.zeros(NNZ + 2), jnp.stack([row, col], 1)), shape=(IN, OUT))
    x, weight = draw(*lead, IN), jnp.append(draw(NNZ), jnp.array([jnp.inf, jnp.nan]))

    def product(weight):
        return sparse_matmul(x, weight, sparse_mat=matrix)

    assert_same(product(weight), reference(x, weight[:NNZ]))
    grad = jax.grad(lambda w: jnp.sin(product(w)).sum())(weight)
    expected = jax.grad(lambda w: jnp.sin(reference(x, w)).sum())(weight[:NNZ])
    assert_same(grad, jnp.append(expected, jnp.zeros(2)))


def test_values_beyond_the_last_pointer_are_padding():
    dense = dense_of(jnp.ones(NNZ))
    for kind in (CSR, CSC, COO, BCOO):
        matrix = kind.fromdense(dense, nse=NNZ + 3)
        assert_same(
            sparse_matmul(draw(IN), matrix.data, sparse_mat=matrix), draw(IN) @ dense, 1e-12
        )


def test_traced_negative_indices_are_padding():
    def product(row):
        matrix = BCOO((draw(NNZ), jnp.stack([row, jnp.asarray(COL)], 1)), shape=(IN, OUT))
        return sparse_matmul(draw(IN), matrix.data, sparse_mat=matrix)

    kept = np.array([0, 1, 3, 4])
    row = jnp.asarray(ROW).at[2].set(-1)
    expected = draw(IN) @ dense_of(draw(NNZ)[kept], ROW[kept], COL[kept])
    assert_same(jax.jit(product)(row), expected)


@pytest.mark.parametrize("traced", [False, True])
def test_narrow_indices_count_to_the_end_of_a_long_axis(traced):
    """300 does not fit into eight bits: neither as a size nor as the index of padding."""
    row, col, x = np.array([2, 255, 7], "uint8"), np.array([1, 0, OUT], "uint8"), draw(300)

    def product(row, col):
        matrix = BCOO((jnp.ones(3), jnp.stack([row, col], 1)), shape=(300, OUT))
        return sparse_matmul(x, jnp.array([1.0, 2.0, 3.0]), sparse_mat=matrix)

    y = (jax.jit(product) if traced else product)(row, col)
    assert_same(y, jnp.array([2 * x[255], x[2], 0.0]))


@pytest.mark.parametrize("lead", [(), (BATCH,), (DENSE_BATCH,)])
def test_no_stored_value(lead):
    empty = CSR((jnp.zeros(0), np.zeros(0, int), np.zeros(IN + 1, int)), shape=(IN, OUT))
    x, bias = draw(*lead, IN), draw(OUT)
    assert_same(
        sparse_matmul(x, empty.data, sparse_mat=empty, bias=bias),
        jnp.broadcast_to(bias, (*lead, OUT)),
    )
    grad = jax.grad(lambda w: sparse_matmul(x, w, sparse_mat=empty).sum())(empty.data)
    assert grad.shape == (0,)


@pytest.mark.parametrize("lead", [(), (1,), (DENSE_BATCH,)])
def test_sizes_of_one(lead):
    matrix = COO((jnp.full(1, 3.0), np.zeros(1, int), np.zeros(1, int)), shape=(1, 1))
    y = sparse_matmul(jnp.full((*lead, 1), 2.0), matrix.data, sparse_mat=matrix, bias=jnp.ones(1))
    assert_same(y, jnp.full((*lead, 1), 7.0))


def test_the_published_call():
    dense = draw(IN, OUT) * (draw(IN, OUT, seed=1) > 0)
    matrix = saiunit.sparse.CSR.fromdense(dense)
    x, data = draw(BATCH, IN), matrix.data
    y = sparse_matmul(x, data, sparse_mat=matrix)
    assert_same(y, x @ dense)
    assert_same(y, x @ matrix.with_data(data))


# --- transformations -----------------------------------------------------------------------------


def scalar(op):
    return lambda *args: jnp.sum(jnp.sin(op(*args)))


def every(args):
    return tuple(range(len(args)))


def scanned(op, args):
    x, *rest = args

    def total(xs, rest):
        def body(carry, x):
            y = jnp.tanh(op(x, *rest))
            return carry + y.sum(), y

        return jax.lax.scan(body, jnp.zeros((), x.dtype), xs)[0]

    return jax.value_and_grad(total, argnums=(0, 1))(jnp.stack([x, 2 * x]), rest)


TRANSFORMS = {
    "jit_grad": lambda op, a: jax.jit(jax.grad(scalar(op), every(a)))(*a),
    "jvp": lambda op, a: jax.jvp(op, a, tuple(jnp.cos(v) for v in a)),
    "linearize": lambda op, a: jax.linearize(op, *a)[1](*a),
    "hessian": lambda op, a: jax.hessian(lambda w: scalar(op)(a[0], w))(a[1]),
    "checkpoint": lambda op, a: jax.grad(jax.checkpoint(scalar(op)), every(a))(*a),
    "vmap": lambda op, a: jax.vmap(lambda x: op(x, *a[1:]), -1, 1)(jnp.stack([a[0], 2 * a[0]], -1)),
    "vmap_vmap_grad": lambda op, a: jax.vmap(
        jax.vmap(jax.grad(scalar(op), every(a)), (0, *[None] * (len(a) - 1))),
        (0, *[None] * (len(a) - 1)),
    )(jnp.stack([jnp.stack([a[0], 2 * a[0]])] * 2), *a[1:]),
    "grad_vmap": lambda op, a: jax.grad(
        lambda x, *rest: jnp.sin(jax.vmap(lambda v: op(v, *rest))(jnp.stack([x, 2 * x]))).sum(),
        every(a),
    )(*a),
    "scan_grad": scanned,
}


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize(
    ("transform", "lead", "has_bias"),
    [(name, (), True) for name in TRANSFORMS]
    + [(name, (BATCH,), False) for name in ("jit_grad", "jvp", "vmap", "scan_grad")],
)
def test_equals_the_dense_product(transform, lead, has_bias):
    args = arrays(lead, has_bias)
    assert_same(TRANSFORMS[transform](ours, args), TRANSFORMS[transform](reference, args))


@pytest.mark.parametrize("num_out", [OUT, DENSE_SIZE * NNZ])
def test_a_large_batch_by_both_routes(num_out):
    """A matrix that is much larger than its stored values never becomes dense."""
    shape = (IN, num_out)
    matrix = COO((draw(NNZ), ROW, COL), shape=shape)

    def product(x, w):
        return sparse_matmul(x, w, sparse_mat=matrix)

    def plain(x, w):
        return x @ dense_of(w, shape=shape)

    args = draw(DENSE_BATCH, IN), draw(NNZ)
    assert_same(
        jax.value_and_grad(scalar(product), (0, 1))(*args),
        jax.value_and_grad(scalar(plain), (0, 1))(*args),
    )


@pytest.mark.parametrize(("lead", "name"), [((), "etp_sp_mv"), ((BATCH,), "etp_sp_mm")])
def test_binds_one_primitive(lead, name):
    (eqn,) = jax.make_jaxpr(ours)(*arrays(lead)).eqns
    assert eqn.primitive.name == name
    assert eqn.params == {"has_bias": True, "num_out": OUT}
    assert [str(v.aval.dtype) for v in eqn.invars] == ["float64"] * 3 + ["int32"] * 2


def test_vmap_keeps_an_etp_primitive(recwarn):
    x, *rest = arrays((BATCH,))
    assert bound_in(jax.vmap(lambda v: ours(v, *rest)), x) == ["etp_sp_mm"]
    assert bound_in(jax.vmap(lambda v: ours(v, *rest)), jnp.stack([x, x])) == ["etp_sp_mm"]
    assert not recwarn.list


def test_vmap_over_the_weight_is_right():
    x, weight, bias = arrays((BATCH,))
    weights = jnp.stack([weight, 2 * weight])
    got = jax.vmap(ours, (None, 0, None))(x, weights, bias)
    assert_same(got, jax.vmap(reference, (None, 0, None))(x, weights, bias))


def test_parameter_functions_are_applied_before_binding():
    x, weight, bias = arrays((BATCH,))
    mask = (weight > 0).astype(weight.dtype)

    def product(x, w, b):
        return sparse_matmul(
            x,
            w,
            sparse_mat=built(),
            bias=b,
            weight_fn=lambda v: jnp.abs(v) * mask,
            bias_fn=jnp.exp,
        )

    def plain(x, w, b):
        return reference(x, jnp.abs(w) * mask, jnp.exp(b))

    args = (x, weight, bias)
    assert_same(product(*args), plain(*args))
    assert_same(
        jax.grad(scalar(product), (0, 1, 2))(*args), jax.grad(scalar(plain), (0, 1, 2))(*args)
    )
    assert bound_in(product, *args) == ["etp_sp_mm"]


# --- dtypes --------------------------------------------------------------------------------------


def test_mixed_dtypes_are_promoted():
    x, weight, bias = arrays((BATCH,))
    x, bias = x.astype("bfloat16"), bias.astype("float32")
    y = sparse_matmul(x, weight.astype("float32"), sparse_mat=built(), bias=bias)
    assert y.dtype == "float32"
    assert_same(y, reference(x.astype("float32"), weight.astype("float32"), bias), 1e-5)


@pytest.mark.parametrize("lead", [(), (DENSE_BATCH,)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_single_dtype_is_kept(dtype, lead):
    x, weight, bias = (v.astype(dtype) for v in arrays(lead))
    y, pull = jax.vjp(ours, x, weight, bias)
    assert y.dtype == dtype
    assert [g.dtype for g in pull(y)] == [dtype] * 3
    expected = reference(*(v.astype("float64") for v in (x, weight, bias)))
    np.testing.assert_allclose(y.astype("float64"), expected, 0, 0.05)


def test_many_small_numbers_are_summed_in_float32():
    n = 2000
    matrix = COO((jnp.ones(n), np.arange(n), np.zeros(n, int)), shape=(n, 1))
    y = sparse_matmul(jnp.ones(n, "bfloat16"), jnp.ones(n, "bfloat16"), sparse_mat=matrix)
    assert float(y[0]) == 2000


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_units_multiply_and_the_bias_is_rescaled(lead):
    x, weight, bias = arrays(lead)
    y = ours(x * saiunit.mV, weight * saiunit.mS, bias * saiunit.nA)
    assert y.unit.has_same_dim(saiunit.uA)
    assert_same(y.to_decimal(saiunit.uA), reference(x, weight, bias * 1e-3))


@pytest.mark.parametrize("name", ["CSR", "CSC", "COO"])
def test_a_matrix_in_units(name):
    x, matrix = draw(IN), built(name, draw(NNZ) * saiunit.mV)
    y = sparse_matmul(x, matrix.data, sparse_mat=matrix)
    expected = x @ matrix
    assert y.unit == expected.unit == saiunit.mV
    assert_same(y.mantissa, expected.mantissa)
    in_volt = sparse_matmul(x, matrix.data.in_unit(saiunit.volt), sparse_mat=matrix)
    assert_same(in_volt.to_decimal(saiunit.mV), expected.mantissa)


def test_units_that_cancel_give_an_array():
    x, weight, bias = arrays((BATCH,))
    y = ours(x * saiunit.mV, weight / saiunit.volt, bias)
    assert isinstance(y, jax.Array)
    assert_same(y, reference(x * 1e-3, weight, bias))


def test_gradients_through_quantities():
    x, weight, _ = arrays((BATCH,))

    def product(w):
        return jnp.sin(ours(x * saiunit.mV, w * saiunit.mS).to_decimal(saiunit.uA)).sum()

    expected = jax.grad(lambda w: jnp.sin(reference(x, w)).sum())(weight)
    assert_same(jax.grad(product)(weight), expected)


def test_parameter_functions_see_numbers_and_the_unit_stays():
    """The numbers of the bias are those in the unit of the product."""
    x, weight, bias = arrays((BATCH,))
    functions = {"weight_fn": jnp.square, "bias_fn": jnp.exp}

    def product(w, b):
        values = {"sparse_mat": built(), "bias": b * saiunit.nA}
        y = sparse_matmul(x * saiunit.mV, w * saiunit.mS, **values, **functions)
        assert y.unit == saiunit.mV * saiunit.mS
        return jnp.sin(y.mantissa).sum()

    def plain(w, b):
        return jnp.sin(reference(x, w**2, jnp.exp(b * 1e-3))).sum()

    assert_same(product(weight, bias), plain(weight, bias))
    assert_same(jax.grad(product, (0, 1))(weight, bias), jax.grad(plain, (0, 1))(weight, bias))


# --- errors --------------------------------------------------------------------------------------

X, W, B = np.ones(IN), np.ones(NNZ), np.ones(OUT)


def of(kind, *parts):
    """A matrix that its own constructor may not check."""
    return lambda: kind((W[: len(parts[0])], *map(np.asarray, parts)), shape=(IN, OUT))


ERRORS = {
    "x_scalar": (
        (1.0, W),
        {},
        ValueError,
        r"x must have shape \[in\] or \[batch, in\], got .*\(\)",
    ),
    "x_rank_3": ((np.ones((2, 2, IN)), W), {}, ValueError, r"x must have .*got shape \(2, 2, 4\)"),
    "features": ((np.ones(2), W), {}, ValueError, r"last axis of x has size 2, expected 4"),
    "nnz": ((X, np.ones(3)), {}, ValueError, r"weight_data must have shape \(5,\).*got shape \(3,"),
    "dense_weight": ((X, np.ones((IN, OUT))), {}, ValueError, r"weight_data must .*shape \(4, 3\)"),
    "weight_scalar": ((X, 1.0), {}, ValueError, r"weight_data must .* got shape \(\)"),
    "bias_size": ((X, W), {"bias": W}, ValueError, r"bias must have shape \(3,\), got shape \(5,"),
    "x_int": ((np.ones(IN, int), W), {}, TypeError, "x has dtype int64, expected a floating-point"),
    "x_bool": ((np.ones(IN, bool), W), {}, TypeError, "x has dtype bool, expected a floating-poin"),
    "weight_int": ((X, W.astype(int)), {}, TypeError, "weight_data has dtype int64, expected a fl"),
    "weight_complex": ((X, W + 1j), {}, TypeError, "weight_data has the complex dtype complex128"),
    "x_none": ((None, W), {}, TypeError, "x must be an array or a saiunit.Quantity, got NoneType"),
    "bias_unit": (
        (X * saiunit.mV, W),
        {"bias": B * saiunit.ms},
        TypeError,
        "bias has the unit ms, expected the unit of x @ sparse_mat, mV",
    ),
    "weight_unit": (
        (X, W * saiunit.ms),
        {"sparse_mat": lambda: built(data=W * saiunit.mV)},
        TypeError,
        "weight_data has the unit ms, expected the unit of the values of sparse_mat, mV",
    ),
    "weight_without_unit": (
        (X, W),
        {"sparse_mat": lambda: built(data=W * saiunit.mV)},
        TypeError,
        "weight_data has the unit 1, expected the unit of the values of sparse_mat, mV",
    ),
    "weight_fn": ((X, W), {"weight_fn": 1}, TypeError, "weight_fn must be a function, got int"),
    "bias_fn": (
        (X, W),
        {"bias": B, "bias_fn": 1},
        TypeError,
        "bias_fn must be a function, got int",
    ),
    "an_array": (
        (X, W),
        {"sparse_mat": lambda: np.ones((IN, OUT))},
        TypeError,
        "sparse_mat must be a CSR, CSC or COO .*BCOO .*, got ndarray",
    ),
    "batched_bcoo": (
        (X, W),
        {"sparse_mat": lambda: BCOO.fromdense(jnp.ones((2, IN, OUT)), n_batch=1)},
        ValueError,
        "got a BCOO with n_batch=1, n_sparse=2 and n_dense=0",
    ),
    "dense_bcoo": (
        (X, W),
        {"sparse_mat": lambda: BCOO.fromdense(jnp.ones((IN, OUT)), n_dense=1)},
        ValueError,
        "got a BCOO with n_batch=0, n_sparse=1 and n_dense=1",
    ),
    "negative_row": (
        (X, W),
        {"sparse_mat": of(COO, [0, -2, 0, 0, 0], COL)},
        ValueError,
        "sparse_mat has the negative index -2",
    ),
    "column_beyond": (
        (X, W),
        {"sparse_mat": of(CSR, [0, 1, 1, OUT, 0], pointers(ROW, IN))},
        ValueError,
        "the CSR sparse_mat has the index 3 along an axis of size 3",
    ),
    "row_beyond": (
        (X, W),
        {"sparse_mat": of(CSC, [0, 3, 9, 1, 1], pointers(COL, OUT))},
        ValueError,
        "the CSC sparse_mat has the index 9 along an axis of size 4",
    ),
    "pointers_of_the_other_axis": (
        (X, W),
        {"sparse_mat": of(CSR, COL, pointers(COL, OUT))},
        ValueError,
        r"indptr of the CSR sparse_mat has shape \(4,\), expected \(5,\)",
    ),
    "falling_pointers": (
        (X, W),
        {"sparse_mat": of(CSR, COL, [0, 3, 2, 4, 5])},
        ValueError,
        "indptr of the CSR sparse_mat must rise from 0 to at most 5, .*got .0 3 2 4 5",
    ),
    "too_many": (
        (X, W),
        {"sparse_mat": of(CSR, COL, [0, 2, 2, 4, 6])},
        ValueError,
        "must rise from 0 to at most 5",
    ),
    "float_indices": (
        (X, W),
        {"sparse_mat": of(COO, ROW.astype(float), COL)},
        TypeError,
        "indices of sparse_mat have dtype float64, expected integers",
    ),
    "unequal_indices": (
        (X, W),
        {"sparse_mat": of(COO, ROW, COL[:3])},
        ValueError,
        r"two arrays \[nnz\], got the shapes \(5,\) and \(3,\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_bound(case, monkeypatch):
    args, options, error, message = ERRORS[case]
    monkeypatch.setattr(_ops, "bind", lambda *a, **k: pytest.fail("bound in spite of bad input"))
    matrix = options.get("sparse_mat", built)()
    with pytest.raises(error, match=message):
        sparse_matmul(*args, **{**options, "sparse_mat": matrix})


def test_errors_are_raised_while_tracing():
    with pytest.raises(ValueError, match="last axis of x has size 2"):
        jax.jit(ours)(np.ones(2), W)
