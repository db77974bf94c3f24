"""Lowered code against JAX: every primitive, generated losses, and mutants that must be caught."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchwell.ensemble import elementary, emit, lowering
from batchwell.ensemble.loop_arrays import View, nest_of
from batchwell.ensemble.loop_rules import LOOP_RULES
from batchwell.ensemble.lowering import Unsupported
from batchwell.ensemble.mapped import mapped
from batchwell.ensemble.rules_maths import ELEMENTWISE

sys.path.insert(0, str(Path(__file__).parent))

from primitives import CASES

POINTS = np.random.default_rng(1).uniform(-2, 2, (21, 4))
POINTS[0] = [0.0, 1.0, -1.0, 0.5]
POINTS[2, :2] = 0.5  # equal entries, for comparisons
POINTS[1] = [1e-9, -1e-9, 30.0, -30.0]
UNIT = np.tanh(POINTS)


@functools.lru_cache(maxsize=256)
def expected(function):
    """What JAX computes at POINTS."""
    return np.asarray(jax.jit(jax.vmap(function))(POINTS)).reshape(len(POINTS), -1)


def differs(function, rtol=2e-12, points=POINTS, loops=False):
    """Whether lowered code is not what JAX computes."""
    if points is POINTS:
        want = expected(function)
    else:
        want = np.asarray(jax.jit(jax.vmap(function))(points)).reshape(len(points), -1)
    got = mapped(function, 4, loops=loops)(points)
    if got.shape != want.shape:
        return True
    return not np.allclose(got, want, rtol=rtol, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_primitive(name, loops):
    assert not differs(CASES[name], loops=loops)


# What has no fused derivative: second derivatives of pools, of gamma functions, and of a sort by
# rows in straight lines; JAX itself has none for loops that end on a condition.
WITHOUT_GRADIENT = {"derivative of pools", "gamma", "static while"}
GRADIENTS = [(name, loops) for name in sorted(set(CASES) - WITHOUT_GRADIENT)
             for loops in (False, True) if loops or name != "sort a table"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loops"), GRADIENTS)
def test_gradient_through_every_primitive(name, loops):
    def weighted(x):
        values = CASES[name](x)
        return values.ravel() @ jnp.cos(jnp.arange(values.size))

    assert not differs(jax.grad(weighted), rtol=1e-9, points=POINTS[2:8], loops=loops)


def test_float32_is_close():
    for name in (
        "exp",
        "expm1",
        "tanh",
        "logistic",
        "activations",
        "arithmetic",
        "softmax",
        "log1p",
    ):
        want = np.asarray(jax.vmap(CASES[name])(POINTS[2:]))
        got = mapped(CASES[name], 4, "float32")(POINTS[2:])
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-6)


def names_in(jaxpr):
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                found |= names_in(getattr(value, "jaxpr", value))
    return found


USED = {name: names_in(jax.make_jaxpr(f)(jnp.zeros(4)).jaxpr) for name, f in CASES.items()}
# Names that other versions of JAX use, and primitives that do nothing to values.
ALIASES = {"add_any", "closed_call", "core_call", "remat", "checkpoint", "custom_vjp_call",
           "custom_vjp_call_jaxpr", "custom_lin", "scatter_add", "copy", "copy_p", "pjit", "stack",
           "optimization_barrier", "reduce_precision", "sharding_constraint", "pvary", "real",
           "expand_dims", "reduce_xor", "empty", "empty2", "jit", "shift_right_logical", "stop_gradient",
           "remat2"}  # fmt: skip


def wrong(rule):
    """A lowering that errs in the last entry of its first result."""

    def mutant(graph, eqn, args):
        outs = [np.array(o, object) for o in rule(graph, eqn, args)]
        out = outs[0].reshape(-1)
        if eqn.outvars[0].aval.dtype == bool:
            out[-1] = graph.negate(out[-1])
        else:
            out[-1] = graph.add(graph.as_real(out[-1]), 0.375)
        return [out.reshape(eqn.outvars[0].aval.shape), *outs[1:]]

    return mutant


def caught(users, loops=False):
    for name in users:
        try:
            if differs(CASES[name], loops=loops):
                return True
        except Exception:
            return True
    return False


@pytest.mark.parametrize("primitive", sorted(set(lowering.RULES) - ALIASES))
def test_a_wrong_rule_is_caught(primitive, monkeypatch):
    users = [name for name, used in USED.items() if primitive in used]
    assert users, f"no case uses {primitive}"
    monkeypatch.setitem(lowering.RULES, primitive, wrong(lowering.RULES[primitive]))
    assert caught(users)


def wrong_in_loops(rule):
    """A rule of array code that errs in the last entry of its first result."""

    def mutant(w, eqn, args):
        first, *rest = rule(w, eqn, args)
        value = w.store(first)
        places = value.view.places[-1:]
        last = w.leaf(value.view.buffer, places, (1,), value.truth)
        moved = w.combine(lambda n: w.graph.sub(0.375, w.graph.as_real(n)), [last], (1,))
        w.store(moved, View(value.view.buffer, places))
        return [value, *rest]

    return mutant


@pytest.mark.parametrize("primitive", sorted(set(LOOP_RULES) - ELEMENTWISE - ALIASES))
def test_a_wrong_loop_is_caught(primitive, monkeypatch):
    users = [name for name, used in USED.items() if primitive in used]
    assert users, f"no case uses {primitive}"
    monkeypatch.setitem(LOOP_RULES, primitive, wrong_in_loops(LOOP_RULES[primitive]))
    assert caught(users, loops=True)


@pytest.mark.parametrize("function", sorted(elementary.FUNCTIONS))
def test_a_wrong_elementary_function_is_caught(function, monkeypatch):
    right = elementary.FUNCTIONS[function]
    monkeypatch.setitem(
        elementary.FUNCTIONS, function, lambda c, x: c.mul(right(c, x), c.like(1 + 1e-9, x))
    )
    users = [name for name, used in USED.items() if function in used]
    assert caught(users) or caught(CASES)


@pytest.mark.parametrize("operation", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_a_wrong_comparison_is_caught(operation, monkeypatch):
    swapped = {"lt": "ole", "le": "olt", "gt": "oge", "ge": "ogt", "eq": "une", "ne": "oeq"}
    monkeypatch.setitem(emit._PREDICATE, operation, swapped[operation])
    assert caught(["compare", "select", "logic"])


LEAVES = st.sampled_from(["a", "b", "c", "k"])
UNARY = {
    "sin": jnp.sin, "tanh": jnp.tanh, "exp": lambda v: jnp.exp(-jnp.abs(v)), "soft": jax.nn.softplus,
    "root": lambda v: jnp.sqrt(1 + v * v), "log": lambda v: jnp.log1p(v * v), "neg": jnp.negative,
    "relu": jax.nn.relu, "gelu": jax.nn.gelu, "cube": lambda v: (v / 2) ** 3, "erf": jax.lax.erf,
}  # fmt: skip
BINARY = {
    "+": jnp.add, "*": jnp.multiply, "-": jnp.subtract, "max": jnp.maximum,
    "/": lambda u, v: u / (1.5 + v * v), "if": lambda u, v: jnp.where(u > v, u, v * 0.5),
    "lae": jnp.logaddexp,
}  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), t),
        st.tuples(st.sampled_from(sorted(BINARY)), t, t),
    ),
    max_leaves=8,
)


def grown(tree, x):
    if isinstance(tree, str):
        return {"a": x[0], "b": x[1], "c": x[2] * x[3], "k": 0.7 + 0 * x[0]}[tree]
    args = [grown(t, x) for t in tree[1:]]
    return UNARY[tree[0]](*args) if len(args) == 1 else BINARY[tree[0]](*args)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(TREES, st.booleans())
def test_generated_losses_and_their_gradients(tree, loops):
    def both(x):
        value, slope = jax.value_and_grad(lambda y: grown(tree, y))(x)
        return jnp.append(slope, value)

    assert not differs(both, rtol=1e-9, points=POINTS[2:], loops=loops)


def unrolled(nest):
    """The places that nested loops run through."""
    first, levels = nest
    places = first[:, None]
    for count, strides in levels:
        places = (places[:, :, None] + strides[:, None, None] * np.arange(count)).reshape(
            len(first), -1
        )
    return places


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(-3, 9), st.integers(-3, 9)), max_size=4),
    st.booleans(),
)
def test_nested_loops_run_through_the_same_places(axes, shuffled):
    grid = np.indices([n for n, _, _ in axes])
    places = np.stack([
        sum((g * axis[k] for g, axis in zip(grid, axes, strict=True)), np.zeros((), int)).ravel()
        + 3 * k
        for k in (1, 2)
    ])  # fmt: skip
    if shuffled:
        places[0] = np.random.default_rng(0).permutation(places[0])
    nest = nest_of(places)
    if nest is None:
        assert shuffled or places.shape[1] > 4
    else:
        np.testing.assert_array_equal(unrolled(nest), places)


def test_long_loops_stay_loops():
    """A recurrence of 300 steps with a matrix product in each: one loop, few lines."""
    matrix = jnp.asarray(np.random.default_rng(5).standard_normal((4, 4)) / 3)

    def recurrent(x):
        last, trace = jax.lax.scan(lambda h, k: (jnp.tanh(matrix @ h + x), h[0]), x, None, 300)
        return jnp.append(last, trace[::50])

    assert not differs(recurrent, loops=True, rtol=1e-9)
    assert not differs(jax.grad(lambda x: recurrent(x).sum()), loops=True, rtol=1e-9)


def attention(w):
    """Two heads of causal attention on six tokens, layer normalisation, embedding by index."""
    x = jnp.asarray(TOKENS)
    q, k, v = (x @ m for m in w[:192].reshape(3, 8, 8))
    heads = [a.reshape(6, 2, 4).transpose(1, 0, 2) for a in (q, k, v)]
    scores = jnp.where(
        jnp.tril(jnp.ones((6, 6), bool)), heads[0] @ heads[1].transpose(0, 2, 1), -1e30
    )
    x = x + (jax.nn.softmax(scores) @ heads[2]).transpose(1, 0, 2).reshape(6, 8)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    logits = jax.nn.gelu(x @ w[192:256].reshape(8, 8)) @ w[256:320].reshape(8, 8)
    return jax.nn.log_softmax(logits)[jnp.arange(6), jnp.array([0, 3, 3, 1, 7, 2])].sum()


def pictures(w):
    """Convolution, largest of each window, convolution with stride, linear layer."""
    x, same = jnp.asarray(TOKENS).reshape(1, 6, 8, 1), ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, w[:18].reshape(3, 3, 1, 2), (1, 1), "SAME", dimension_numbers=same
    )
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    kernel = w[18:54].reshape(3, 3, 2, 2)
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=same))
    return jax.nn.logsumexp(x.ravel() @ w[54:78].reshape(8, 3))


TOKENS = np.random.default_rng(6).standard_normal((6, 8))


@pytest.mark.parametrize(("net", "dim"), [(attention, 320), (pictures, 78)])
def test_gradients_of_networks_that_people_train(net, dim):
    points = 0.3 * np.random.default_rng(7).standard_normal((5, dim))
    want = np.asarray(jax.jit(jax.vmap(jax.grad(net)))(points))
    got = mapped(jax.grad(net), dim, loops=True)(points)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def test_what_cannot_be_lowered_says_so():
    for function, reason in (
        (lambda x: jnp.linalg.qr(jnp.outer(x, x))[0], "qr"),
        (lambda x: jax.lax.while_loop(lambda v: v[0] < 3, lambda v: v + 1, x), "length depends"),
        (lambda x: jnp.sort(jnp.arange(100.0) * x[0]), "sort"),
        (lambda x: (jnp.zeros(200).at[0].set(x[0]))[jnp.argmax(x)], "more than 64 places"),
        (lambda x: jnp.ones((300, 300)) @ (jnp.ones((300, 4)) @ x), "scalar operations"),
    ):
        with pytest.raises(Unsupported, match=reason):
            mapped(function, 4)
