"""Rules for special functions, whole numbers as bits, sorting and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jax, jnp
from .interpreter import RULES, Nodes, Unsupported, each, open_jaxpr, rule, run
from .ir import Graph, Scalar

MAX_SORTED = 64  # entries that straight-line code sorts

# -- inverse error function: Giles, "Approximating the erfinv function" (2011), double precision -
_CENTRAL = (
    -3.6444120640178196996e-21, -1.685059138182016589e-19, 1.2858480715256400167e-18,
    1.115787767802518096e-17, -1.333171662854620906e-16, 2.0972767875968561637e-17,
    6.6376381343583238325e-15, -4.0545662729752068639e-14, -8.1519341976054721522e-14,
    2.6335093153082322977e-12, -1.2975133253453532498e-11, -5.4154120542946279317e-11,
    1.051212273321532285e-09, -4.1126339803469836976e-09, -2.9070369957882005086e-08,
    4.2347877827932403518e-07, -1.3654692000834678645e-06, -1.3882523362786468719e-05,
    0.0001867342080340571352, -0.00074070253416626697512, -0.0060336708714301490533,
    0.24015818242558961693, 1.6536545626831027356,
)  # fmt: skip
_OUTER = (
    2.2137376921775787049e-09, 9.0756561938885390979e-08, -2.7517406297064545428e-07,
    1.8239629214389227755e-08, 1.5027403968909827627e-06, -4.013867526981545969e-06,
    2.9234449089955446044e-06, 1.2475304481671778723e-05, -4.7318229009055733981e-05,
    6.8284851459573175448e-05, 2.4031110387097893999e-05, -0.0003550375203628474796,
    0.00095328937973738049703, -0.0016882755560235047313, 0.0024914420961078508066,
    -0.0037512085075692412107, 0.005370914553590063617, 1.0052589676941592334,
    3.0838856104922207635,
)  # fmt: skip
_FAR = (
    -2.7109920616438573243e-11, -2.5556418169965252055e-10, 1.5076572693500548083e-09,
    -3.7894654401267369937e-09, 7.6157012080783393804e-09, -1.4960026627149240478e-08,
    2.9147953450901080826e-08, -6.7711997758452339498e-08, 2.2900482228026654717e-07,
    -9.9298272942317002539e-07, 4.5260625972231537039e-06, -1.9681778105531670567e-05,
    7.5995277030017761139e-05, -0.00021503011930044477347, -0.00013871931833623122026,
    1.0103004648645343977, 4.8499064014085844221,
)  # fmt: skip
# -- gamma function: Lanczos's approximation with g = 7 ----------------------------------------
_G = 7.0
_LANCZOS = (
    676.520368121885098567009190444019, -1259.13921672240287047156078755283,
    771.3234287776530788486528258894, -176.61502916214059906584551354,
    12.507343278686904814458936853, -0.13857109526572011689554707,
    9.984369578019570859563e-6, 1.50563273514931155834e-7,
)  # fmt: skip
_LANCZOS_BASE = 0.99999999999980993227684700473478


def _polynomial(g: Graph, x: Scalar, coefficients: Sequence[float]) -> Scalar:
    total: Scalar = coefficients[0]
    for c in coefficients[1:]:
        total = g.add(g.mul(total, x), c)
    return total


def _erf_inv(g: Graph, x: Scalar) -> Scalar:
    w = g.unary("neg", g.unary("log1p", g.unary("neg", g.mul(x, x))))
    root = g.unary("sqrt", w)
    central = _polynomial(g, g.sub(w, 3.125), _CENTRAL)
    outer = _polynomial(g, g.sub(root, 3.25), _OUTER)
    far = _polynomial(g, g.sub(root, 5.0), _FAR)
    tail = g.select(g.compare("lt", w, 16.0), outer, far)
    value = g.mul(g.select(g.compare("lt", w, 6.25), central, tail), x)
    end = g.compare("eq", g.unary("abs", x), 1.0)
    return g.select(end, g.mul(x, math.inf), value)


def _log_shifted(g: Graph, z: Scalar) -> Scalar:
    """log(z + g + 1/2)."""
    return g.add(math.log(_G + 0.5), g.unary("log1p", g.div(z, _G + 0.5)))


def _lgamma(g: Graph, x: Scalar) -> Scalar:
    low = g.compare("lt", x, 0.5)
    z = g.select(low, g.unary("neg", x), g.sub(x, 1.0))
    total: Scalar = _LANCZOS_BASE
    for k, c in enumerate(_LANCZOS):
        total = g.add(total, g.div(c, g.add(z, k + 1.0)))
    t, log_t = g.add(z, _G + 0.5), _log_shifted(g, z)
    scaled = g.mul(g.sub(g.add(z, 0.5), g.div(t, log_t)), log_t)
    value = g.add(g.add(scaled, 0.5 * math.log(2 * math.pi)), g.unary("log", total))
    size = g.unary("abs", x)
    part = g.sub(size, g.unary("floor", size))
    part = g.other("min", part, g.sub(1.0, part))
    sine = g.unary("sin", g.mul(math.pi, part))
    mirrored = g.sub(g.sub(math.log(math.pi), g.unary("log", sine)), value)
    mirrored = g.select(g.compare("eq", part, 0.0), math.inf, mirrored)
    return g.select(g.compare("eq", size, math.inf), math.inf, g.select(low, mirrored, value))


def _digamma(g: Graph, x: Scalar) -> Scalar:
    low = g.compare("lt", x, 0.5)
    z = g.select(low, g.unary("neg", x), g.sub(x, 1.0))
    top: Scalar = 0.0
    bottom: Scalar = _LANCZOS_BASE
    for k, c in enumerate(_LANCZOS):
        one = g.div(c, g.add(z, k + 1.0))
        top, bottom = g.sub(top, g.div(one, g.add(z, k + 1.0))), g.add(bottom, one)
    value = g.add(_log_shifted(g, z), g.sub(g.div(top, bottom), g.div(_G, g.add(z, _G + 0.5))))
    part = g.mul(math.pi, g.add(x, g.unary("abs", g.unary("floor", g.add(x, 0.5)))))
    cotangent = g.div(g.unary("cos", part), g.unary("sin", part))
    mirrored = g.sub(value, g.mul(math.pi, cotangent))
    whole = g.compare("eq", x, g.unary("floor", x))
    pole = g.logic("and", whole, g.compare("le", x, 0.0))
    return g.select(pole, math.nan, g.select(low, mirrored, value))


def _of_one(function: Callable[[Graph, Scalar], Scalar]) -> Any:
    return lambda g, e, a: [each(lambda x: function(g, x), a[0])]


RULES.update({"erf_inv": _of_one(_erf_inv), "lgamma": _of_one(_lgamma)})
RULES.update({"digamma": _of_one(_digamma)})


@rule("shift_left", "shift_right_arithmetic")
def _shifted(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    def one(x: Scalar, count: Scalar) -> Scalar:
        power = g.unary("exp2", count)
        if e.primitive.name == "shift_left":
            return g.mul(x, power)
        return g.unary("floor", g.div(x, power))

    return [each(one, *a)]


ELEMENTWISE_SPECIAL = frozenset(name for name, r in RULES.items() if r.__module__ == __name__)


# -- sorting and convolutions -----------------------------------------------------------------
def _before(g: Graph, a: Sequence[Scalar], b: Sequence[Scalar]) -> Scalar:
    """Whether keys a come before keys b, strictly."""
    earlier: Scalar = False
    for p, q in zip(reversed(a), reversed(b), strict=True):
        tied = g.logic("and", g.compare("eq", p, q), earlier)
        earlier = g.logic("or", g.compare("lt", p, q), tied)
    return earlier


@rule("sort")
def _sort(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    """Neighbours are exchanged until nothing moves: few entries, and ties keep their order."""
    axis, keys = e.params["dimension"], e.params["num_keys"]
    columns = [np.moveaxis(v, axis, -1).copy() for v in a]
    n = columns[0].shape[-1]
    if n > MAX_SORTED:
        raise Unsupported("sort", f"'sort' of more than {MAX_SORTED} entries")
    for where in np.ndindex(columns[0].shape[:-1]):
        for last in range(n - 1, 0, -1):
            for k in range(last):
                first, second = ([c[where][j] for c in columns] for j in (k, k + 1))
                swap = _before(g, second[:keys], first[:keys])
                for c, p, q in zip(columns, first, second, strict=True):
                    c[where][k], c[where][k + 1] = g.select(swap, q, p), g.select(swap, p, q)
    return [np.moveaxis(c, -1, axis) for c in columns]


def sorted_by_rank(operands: Sequence[Any], axis: int, keys: int) -> list[Any]:
    """What 'sort' does, in jax.numpy for array code: every entry is put at its rank."""

    def one(*columns: Any) -> list[Any]:
        n = columns[0].shape[0]
        order = jnp.arange(n)
        earlier = order[None, :] < order[:, None]
        for key in reversed(columns[:keys]):
            tied = (key[None, :] == key[:, None]) & earlier
            earlier = (key[None, :] < key[:, None]) | tied
        rank = jnp.sum(jnp.where(earlier, 1.0, 0.0), axis=1).astype(int)
        return [jnp.zeros_like(c).at[rank].set(c, mode="promise_in_bounds") for c in columns]

    moved = [jnp.moveaxis(v, axis, -1) for v in operands]
    shape = moved[0].shape
    rows = [v.reshape(-1, shape[-1]) for v in moved]
    done = one(*(r[0] for r in rows)) if len(rows[0]) == 1 else jax.vmap(one)(*rows)
    return [jnp.moveaxis(v.reshape(shape), -1, axis) for v in done]


def convolution(lhs: Any, rhs: Any, params: dict[str, Any]) -> Any:
    """What 'conv_general_dilated' does, as one product of patches."""
    spec = params["dimension_numbers"]
    x, w = jnp.transpose(lhs, spec.lhs_spec), jnp.transpose(rhs, spec.rhs_spec)
    spread = [(int(d) - 1) for d in params["lhs_dilation"]]
    edges = [(int(lo), int(hi), d) for (lo, hi), d in zip(params["padding"], spread, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    for k, (step, apart) in enumerate(
        zip(params["window_strides"], params["rhs_dilation"], strict=True)
    ):
        x = _windows(x, 2 + 2 * k, w.shape[2 + k], int(step), int(apart))
    rank = len(spread)
    places, kernel = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    x = jnp.transpose(x, [0, 1, *places, *kernel])
    y = _grouped(x, w, rank, params["feature_group_count"], params["batch_group_count"])
    return jnp.transpose(y, np.argsort(spec.out_spec).tolist())


def _windows(x: Any, axis: int, size: int, step: int, apart: int) -> Any:
    """Axis -> (place, entry of the kernel)."""
    count = (x.shape[axis] - (size - 1) * apart - 1) // step + 1
    index = np.arange(count)[:, None] * step + np.arange(size) * apart
    taken = jnp.take(x, index.ravel(), axis=axis, mode="clip")
    return taken.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _grouped(x: Any, w: Any, rank: int, features: int, batches: int) -> Any:
    """(n, c, places, kernel) and (o, i, kernel) -> (n, o, places)."""
    n, c = x.shape[:2]
    places, kernel = x.shape[2 : 2 + rank], int(np.prod(x.shape[2 + rank :]))
    spots = int(np.prod(places))
    if batches > 1:
        patches = x.reshape(batches, n // batches, c, spots, kernel)
        weights = w.reshape(batches, -1, c, kernel)
        y = jnp.einsum("bncpk,bfck->nbfp", patches, weights)
        return y.reshape(n // batches, w.shape[0], *places)
    patches = x.reshape(n, features, c // features, spots, kernel)
    weights = w.reshape(features, -1, c // features, kernel)
    return jnp.einsum("ngcpk,gfck->ngfp", patches, weights).reshape(n, w.shape[0], *places)


def _window_places(shape: Sequence[int], params: dict[str, Any]) -> np.ndarray:
    """(windows, entries of one): places in a flat operand, its size for those in the padding."""
    size, rank = int(np.prod(shape)), len(shape)
    spread = params.get("base_dilation") or (1,) * rank
    apart = params.get("window_dilation") or (1,) * rank
    places = np.arange(size).reshape(tuple(shape))
    for k, (low, high) in enumerate(params["padding"]):
        spots = low + np.arange(shape[k]) * spread[k]
        total = low + high + (shape[k] - 1) * spread[k] + 1
        source = np.full(total, -1)
        good = (spots >= 0) & (spots < total)
        source[spots[good]] = np.flatnonzero(good)
        width, step = params["window_dimensions"][k], params["window_strides"][k]
        count = (total - (width - 1) * apart[k] - 1) // step + 1
        index = source[np.arange(count)[:, None] * step + np.arange(width) * apart[k]]
        taken = np.take(places, index, axis=k)
        edge = index.reshape(index.shape + (1,) * (taken.ndim - k - 2)) < 0
        places = np.moveaxis(np.where(edge, size, taken), k + 1, -1)
    return places.reshape(-1, int(np.prod(params["window_dimensions"])))


_POOLS: dict[str, tuple[Any, float]] = {"reduce_window_sum": (jnp.sum, 0.0), "reduce_window_max": (jnp.max, -np.inf),
          "reduce_window_min": (jnp.min, np.inf)}  # fmt: skip


def pooled(x: Any, name: str, shape: Sequence[int], params: dict[str, Any]) -> Any:
    """What a 'reduce_window' does, by its windows side by side."""
    reduce, edge = _POOLS[name]
    padded = jnp.append(x.ravel(), edge)
    windows = padded[_window_places(x.shape, params)]
    return reduce(windows, axis=1).reshape(shape)


def picked_back(source: Any, operand: Any, params: dict[str, Any]) -> Any:
    """What 'select_and_scatter_add' does: each window's source goes to its largest entry."""
    places = _window_places(operand.shape, params)
    least = params["select_prim"].name.startswith("l")
    flat = -operand.ravel() if least else operand.ravel()
    best = jnp.argmax(jnp.append(flat, -np.inf)[places], axis=1)
    hit = best[:, None] == np.arange(places.shape[1])[None, :]
    parts = jnp.where(hit, source.ravel()[:, None], 0.0)
    out = jnp.zeros(operand.size + 1).at[places.ravel()].add(parts.ravel())
    return out[: operand.size].reshape(operand.shape)


def rewritten(e: Any) -> Any | None:
    """The closed jaxpr that says the same in other primitives, for those that have one."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in e.invars]
    name, p = e.primitive.name, e.params
    if name == "conv_general_dilated":
        return jax.make_jaxpr(lambda x, w: convolution(x, w, p))(*shapes)
    if name == "sort":
        return jax.make_jaxpr(lambda *v: sorted_by_rank(v, p["dimension"], p["num_keys"]))(*shapes)
    if name in _POOLS:
        shape = e.outvars[0].aval.shape
        return jax.make_jaxpr(lambda x: pooled(x, name, shape, p))(*shapes)
    if name == "select_and_scatter_add":
        return jax.make_jaxpr(lambda s, x: picked_back(s, x, p))(*shapes)
    return None


@rule("conv_general_dilated", "select_and_scatter_add", *_POOLS)
def _in_other_primitives(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return run(g, *open_jaxpr(rewritten(e)), a)
