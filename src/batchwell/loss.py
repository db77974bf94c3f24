"""`StochasticLoss`: a loss of one example, and everything the theory needs of its mean.

A user writes ``loss(x, z)``, the scalar loss of ONE example z at parameters x, once in
jax.numpy. Gradients, Hessians, covariances and cumulants come from it by automatic
differentiation. Two constructors: `finite_sum` for a data set, `sampled` (and its short
form `additive`) for examples drawn from a noise law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from ._jax import jax, jnp, traced
from .errors import InputError, require, whole
from .linearity import affine_in
from .noise import Noise, noise_law, product_rule
from .points import numbers, point

Array = Any
LossFunction = Callable[[Array, Any], Array]
Method = TypeVar("Method", bound=Callable[..., Array])
MAX_SQUARE = 16  # dimensions up to which a square factor is written out


def _compiled(method: Method) -> Method:
    """Called with numbers, `method` is one compiled program; inside a trace it is what it says.

    Operation by operation XLA would compile each one of them, for every shape. Data are arguments
    of the program: as constants they would be folded into it.
    """

    @wraps(method)
    def call(self: StochasticLoss, *at: Array) -> Array:
        leaves = jax.tree.leaves((at, self.nodes, self.weights))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return method(self, *at)
        if method.__name__ not in self._programs:

            def program(nodes: Any, weights: Array, *at: Array) -> Array:
                return method(replace(self, nodes=nodes, weights=weights), *at)

            self._programs[method.__name__] = jax.jit(program)
        # Before the program sees it: inside, float32 from NumPy would count as chosen.
        x, *rest = at
        return self._programs[method.__name__](self.nodes, self.weights, _real(x), *rest)

    return cast(Method, call)


@dataclass(frozen=True, eq=False)
class StochasticLoss:
    """The random loss f(x; z) whose mean F SGD descends.

    Build it with `finite_sum`, `sampled` or `additive`.

    Attributes
    ----------
    function
        ``loss(x, z)``: scalar loss of one example.
    dim
        Dimension d of x; parameters are flat vectors of shape (d,).
    nodes
        The data (finite sum) or the nodes of the noise's rule: a pytree of arrays
        whose first axis has length m.
    weights
        Shape (m,), summing to 1: ``F(x) = sum_i weights[i] loss(x, nodes[i])``.
    noise, noise_dim
        The noise law and the number of its independent copies in z; None for data.
    closed_mean
        F(x) without nodes, where there is such a form.
    closed_factor
        G(x), (d, noise_dim), of gradients ``grad F(x) + G(x) z``: those affine in their noise.
    free, orbit_dim
        The loss itself where this one holds it on a slice of a continuous symmetry
        (`symmetry.quotient`), and the dimension of that symmetry's orbits.
    """

    function: LossFunction = field(repr=False)
    dim: int
    nodes: Any = field(repr=False)
    weights: Array = field(repr=False)
    noise: Noise | None = None
    noise_dim: int = 0
    closed_mean: Callable[[Array], Array] | None = field(default=None, repr=False)
    closed_factor: Callable[[Array], Array] | None = field(default=None, repr=False)
    name: str = "loss"
    free: StochasticLoss | None = field(default=None, repr=False)
    orbit_dim: int = 0

    @property
    def n(self) -> int | None:
        """Number of examples of a finite sum, None for a sampled loss."""
        return None if self.noise is not None else int(self.weights.shape[0])

    @property
    def size(self) -> int:
        """Number of nodes that carry the expectation."""
        return int(self.weights.shape[0])

    @cached_property
    def _programs(self) -> dict[str, Callable[..., Array]]:
        return {}

    def losses(self, x: Array) -> Array:
        """Loss of every node at x (d,): shape (m,)."""
        return jax.vmap(self.function, in_axes=(None, 0))(_real(x), self.nodes)

    @_compiled
    def mean(self, x: Array) -> Array:
        """F(x) at x (d,): scalar."""
        if self.closed_mean is not None:
            return self.closed_mean(_real(x))
        return jnp.dot(self.weights, self.losses(x))

    @_compiled
    def gradient(self, x: Array) -> Array:
        """grad F(x) at x (d,): shape (d,)."""
        return jax.grad(self.mean)(_real(x))

    @_compiled
    def hessian(self, x: Array) -> Array:
        """Hessian of F at x (d,): shape (d, d)."""
        return jax.hessian(self.mean)(_real(x))

    @_compiled
    def hessian_vector(self, x: Array, v: Array) -> Array:
        """Hessian of F at x times v, both (d,): shape (d,); no matrix is formed."""
        x = _real(x)
        return jax.jvp(self.gradient, (x,), (jnp.asarray(v, dtype=x.dtype),))[1]

    @_compiled
    def example_gradient(self, x: Array, z: Any) -> Array:
        """Gradient of the loss of one example z at x (d,): shape (d,)."""
        return jax.grad(self.function)(_real(x), z)

    @_compiled
    def example_gradients(self, x: Array) -> Array:
        """Gradients of all nodes at x (d,): shape (m, d)."""
        return jax.vmap(jax.grad(self.function), in_axes=(None, 0))(_real(x), self.nodes)

    @_compiled
    def factor(self, x: Array) -> Array:
        """A matrix s (d, m) with s s^T = Sigma(x): weighted centred example gradients.

        For noise in few dimensions the square factor that `square_root` makes of Sigma: m = d.
        """
        if self.closed_factor is not None:
            return self.closed_factor(_real(x))
        g = self.example_gradients(x)
        columns = (jnp.sqrt(self.weights)[:, None] * (g - self.weights @ g)).T
        return square_root(columns @ columns.T) if self.square else columns

    @property
    def square(self) -> bool:
        """Whether `factor` is square: nodes of a rule outnumber the dimensions of x."""
        many = self.noise is not None and self.closed_factor is None
        return many and self.dim <= MAX_SQUARE and self.dim < self.size

    @_compiled
    def factor_vector(self, x: Array, xi: Array) -> Array:
        """``factor(x) @ xi`` for xi (m,) by ONE weighted gradient: no (d, m) matrix.

        With centred gradients c_i = g_i - grad F, sum_i sqrt(w_i) xi_i c_i equals
        sum_i v_i g_i with v_i = sqrt(w_i) xi_i - w_i sum_j sqrt(w_j) xi_j.
        """
        if self.closed_factor is not None or self.square:
            return self.factor(x) @ xi
        scaled = jnp.sqrt(self.weights) * xi
        v = scaled - self.weights * jnp.sum(scaled)
        return jax.grad(lambda y: jnp.dot(v, self.losses(y)))(x)

    @property
    def factor_dim(self) -> int:
        """Number of columns of `factor`."""
        if self.closed_factor is not None:
            return self.noise_dim
        return self.dim if self.square else self.size

    @_compiled
    def covariance(self, x: Array) -> Array:
        """Sigma(x): covariance of ONE example's gradient at x (d,): shape (d, d)."""
        if self.closed_factor is not None:
            s = self.closed_factor(_real(x))
            return s @ s.T
        g = self.example_gradients(x)
        c = g - self.weights @ g
        return c.T @ (self.weights[:, None] * c)

    @_compiled
    def third_cumulant(self, x: Array) -> Array:
        """Third cumulant tensor of one example's gradient at x (d,): shape (d, d, d)."""
        g = self.example_gradients(x)
        c = g - self.weights @ g
        return jnp.einsum("m,mi,mj,mk->ijk", self.weights, c, c, c)


def _real(x: Array) -> Array:
    """Points given as whole numbers or lists as well; arrays of reals are left as they are."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.asarray(x, dtype=jnp.float64)


def square_root(matrix: Array) -> Array:
    """Lower triangular s with s s^T = matrix, (d, d), positive semidefinite.

    Cholesky's algorithm, written out; a pivot that is rounding only leaves its column zero.
    """
    d = matrix.shape[0]
    columns: list[Array] = []
    for k in range(d):
        rest = matrix[:, k] - sum((c * c[k] for c in columns), jnp.zeros(d))
        good = rest[k] > 4 * d * jnp.finfo(matrix.dtype).eps * matrix[k, k]
        column = rest / jnp.sqrt(jnp.where(good, rest[k], 1.0))
        columns.append(jnp.where(good & (jnp.arange(d) >= k), column, 0.0))
    return jnp.stack(columns, axis=1)


def finite_sum(function: LossFunction, data: Any, dim: int, name: str = "loss") -> StochasticLoss:
    """The loss whose mean over a data set SGD descends.

    Parameters
    ----------
    function
        ``loss(x, z)``: scalar loss of one example at x (dim,), in jax.numpy.
    data
        A pytree of arrays (one array, a tuple, a dict) with the examples along
        their first axes; z is the same pytree without that axis.
    dim
        Dimension of x.

    Raises
    ------
    InputError
        Empty data, arrays of unequal length, a value that is not finite, or a `function` that
        does not return a scalar float.

    Examples
    --------
    >>> import numpy as np
    >>> data = (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0]))
    >>> ls = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, data, dim=2)
    >>> ls.n, float(ls.mean(np.ones(2)))
    (3, 1.5)
    """
    dim = whole("dim", dim)
    if isinstance(data, list):  # rows of numbers, not a tree of arrays
        data = numbers("data", data, "lists must be rows of numbers, all of one length")
    arrays = jax.tree.map(lambda a: np.asarray(a), data)
    leaves = jax.tree.leaves(arrays)
    require(bool(leaves), "data", data, "must hold at least one array")
    lengths = {a.shape[0] if a.ndim else -1 for a in leaves}
    require(
        len(lengths) == 1 and -1 not in lengths,
        "data",
        sorted(lengths),
        "all arrays need the same first axis, one row per example",
    )
    n = lengths.pop()
    require(n >= 1, "data", f"{n} examples", "must hold at least one example")
    for leaf in leaves:
        _check_values(leaf)
    nodes = jax.tree.map(_device_array, arrays)
    loss = StochasticLoss(function, dim, nodes, jnp.full(n, 1.0 / n), name=name)
    _check_scalar(loss)
    return loss


def sampled(
    function: LossFunction,
    law: str | Noise,
    dim: int,
    noise_dim: int = 1,
    mean: Callable[[Array], Array] | None = None,
    name: str = "loss",
) -> StochasticLoss:
    """A loss whose examples z, shape (noise_dim,), have independent entries from `law`.

    `noise_dim` is how many entries z has. Expectations use the law's rule (`noise.product_rule`), exact for the stated degree
    in z; where the loss is affine in z (seen from its jaxpr), exact forms without nodes. A closed
    form of F may be given as `mean`; it is checked against the rule.

    Raises
    ------
    InputError
        Unknown law, a `function` that is not scalar, or a `mean` that disagrees.

    Examples
    --------
    >>> import numpy as np
    >>> loss = sampled(
    ...     lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0], "gaussian", dim=1, noise_dim=2
    ... )
    >>> float(loss.covariance(np.array([1.0]))[0, 0].round(12))
    1.64
    """
    dim, noise_dim = whole("dim", dim), whole("noise_dim", noise_dim)
    law = noise_law(law)
    rule = product_rule(law, noise_dim)
    loss = StochasticLoss(
        function,
        dim,
        jnp.asarray(rule.nodes),
        jnp.asarray(rule.weights),
        law,
        noise_dim,
        closed_mean=mean,
        name=name,
    )
    _check_scalar(loss)
    if mean is not None:
        _check_mean(loss, mean)
    return _with_closed_forms(loss)


def _with_closed_forms(loss: StochasticLoss) -> StochasticLoss:
    """Mean and factor without nodes, where loss and gradient are affine in their noise."""
    f, none = loss.function, jnp.zeros(loss.noise_dim)
    shapes = [jax.ShapeDtypeStruct((k,), jnp.float64) for k in (loss.dim, loss.noise_dim)]
    if loss.closed_mean is None and affine_in(f, shapes, 1):
        loss = replace(loss, closed_mean=lambda x: f(x, none))
    if affine_in(jax.grad(f), shapes, 1):
        loss = replace(loss, closed_factor=lambda x: jax.jacfwd(jax.grad(f), argnums=1)(x, none))
    return loss


def additive(
    potential: Callable[[Array], Array],
    law: str | Noise = "gaussian",
    dim: int = 1,
    scale: ArrayLike = 1.0,
    name: str = "loss",
) -> StochasticLoss:
    """F = `potential` with gradient noise that does not depend on x: g = grad F + scale xi.

    Parameters
    ----------
    potential
        ``F(x)``, scalar, in jax.numpy.
    law
        Law of the independent entries of xi (mean 0, variance 1).
    scale
        A number, or a matrix (dim, k): Sigma = scale scale^T.

    Examples
    --------
    >>> import numpy as np
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.7)
    >>> round(float(well.covariance(np.zeros(1))[0, 0]), 12)
    0.49
    """
    dim = whole("dim", dim)
    matrix = numbers("scale", scale, "must be a number or a matrix")
    require(bool(np.all(np.isfinite(matrix))), "scale", scale, "must be finite")
    if matrix.ndim == 0:
        matrix = matrix * np.eye(dim)
    require(
        matrix.ndim == 2 and matrix.shape[0] == dim,
        "scale",
        matrix.shape,
        f"must be a number or a matrix with {dim} rows",
    )
    fixed = jnp.asarray(matrix)
    law = noise_law(law)
    rule = product_rule(law, matrix.shape[1])
    loss = StochasticLoss(
        lambda x, z: potential(x) + jnp.dot(x, fixed @ z),
        dim,
        jnp.asarray(rule.nodes),
        jnp.asarray(rule.weights),
        law,
        matrix.shape[1],
        closed_mean=potential,
        closed_factor=lambda x: fixed,
        name=name,
    )
    _check_scalar(loss)
    return loss


def check_at(loss: StochasticLoss, x: ArrayLike, key: str = "loss") -> None:
    """Refuse a loss that is random, not finite or not differentiable at and around x (d,).

    The loss is evaluated twice at the same point (hidden randomness shows as a difference), and
    its differences at x and its rise along straight ways are compared with its gradient.

    Raises
    ------
    InputError
        Naming what was found and where.
    """
    here = jnp.asarray(point("x", x, loss.dim))
    first, second = np.asarray(loss.losses(here)), np.asarray(loss.losses(here))
    require(
        bool(np.array_equal(first, second, equal_nan=True)),
        key,
        "two calls, two values",
        "must not use hidden randomness: let it depend on x and z alone",
    )
    require(
        bool(np.all(np.isfinite(first))),
        key,
        f"not finite at x = {np.asarray(x)}",
        "must be finite where it is used",
    )
    _check_derivative(loss, here, key)
    _check_rise(loss, here, key)


def _check_derivative(loss: StochasticLoss, x: Array, key: str) -> None:
    """At x itself: both one-sided differences must agree with the gradient."""
    rng = np.random.Generator(np.random.Philox(20170522))
    u = rng.standard_normal(loss.dim)
    way, h = jnp.asarray(u / np.linalg.norm(u)), 1e-6 * (1.0 + float(np.max(np.abs(np.asarray(x)))))
    slope = float(jnp.dot(loss.gradient(x), way))
    here, up, down = (float(loss.mean(x + s * way)) for s in (0.0, h, -h))
    after, before = (up - here) / h, (here - down) / h
    tolerance = 1e-3 * max(1.0, abs(slope)) + 1e-14 * (1.0 + abs(here)) / h
    require(
        bool(np.isfinite(slope)) and max(abs(after - slope), abs(before - slope)) <= tolerance,
        key,
        f"derivative {slope:.6g}, differences {after:.6g} and {before:.6g}",
        "must be differentiable where it is used",
    )


def _check_rise(loss: StochasticLoss, x: Array, key: str) -> None:
    """Around x: F must rise along straight ways by the integral of its gradient."""
    rng = np.random.Generator(np.random.Philox(20170523))
    scale = 1.0 + float(np.max(np.abs(np.asarray(x))))
    mean, slope_along = jax.jit(loss.mean), jax.jit(_slopes(loss))
    nodes, weights = np.polynomial.legendre.leggauss(64)
    for length in (1e-6, 1e-2, 1.0):
        u = rng.standard_normal(loss.dim)
        step = jnp.asarray(0.5 * length * scale * u / np.linalg.norm(u))
        slopes = np.asarray(slope_along(x, step, jnp.asarray(nodes)))
        require(
            bool(np.all(np.isfinite(slopes))),
            key,
            f"gradient {slopes[~np.isfinite(slopes)][:1]} near x = {np.asarray(x)}",
            "must have a finite gradient where it is used",
        )
        rise, integral = float(mean(x + step) - mean(x - step)), float(weights @ slopes)
        rounding = 1e-14 * (abs(float(mean(x))) + 1.0)
        tolerance = 0.02 * float(weights @ np.abs(slopes)) + rounding
        require(
            abs(rise - integral) <= tolerance,
            key,
            f"rises by {rise:.6g} where its gradient says {integral:.6g}",
            "must be differentiable where it is used (no rounding, no jumps)",
        )


def _slopes(loss: StochasticLoss) -> Callable[[Array, Array, Array], Array]:
    """Derivatives of F along x + t step at the values t: their integral is F's rise."""

    def slopes(x: Array, step: Array, t: Array) -> Array:
        return jax.vmap(lambda s: jnp.dot(loss.gradient(x + s * step), step))(t)

    return slopes


def _check_values(leaf: np.ndarray) -> None:
    if leaf.dtype.kind not in "biuf":
        raise InputError("data", f"values of type {leaf.dtype}", "must be numbers")
    bad = np.argwhere(~np.isfinite(leaf)) if leaf.dtype.kind == "f" else np.empty((0, 1))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InputError(f"data{list(where)}", leaf[where], "must be finite (no NaN, no infinity)")


def _device_array(leaf: np.ndarray) -> Array:
    return jnp.asarray(leaf, dtype=jnp.float64 if leaf.dtype.kind == "f" else None)


def _check_scalar(loss: StochasticLoss) -> None:
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
    x = jax.ShapeDtypeStruct((loss.dim,), jnp.float64)
    call = f"x of shape ({loss.dim},) and one example"
    out = traced("loss", loss.function, x, example, call=call)
    shape = getattr(out, "shape", None)
    floating = shape == () and jnp.issubdtype(out.dtype, jnp.floating)
    require(floating, "loss", f"returns {out}", "must return one real number for one example")
    try:
        jax.eval_shape(jax.grad(loss.function), x, example)
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "must have a gradient; give loops a fixed number of turns, as in jax.lax.scan"
        raise InputError("loss", why, remedy) from error


def _check_mean(loss: StochasticLoss, mean: Callable[[Array], Array]) -> None:
    rng = np.random.Generator(np.random.Philox(1705))
    for _ in range(3):
        x = jnp.asarray(rng.standard_normal(loss.dim))
        want, got = float(jnp.dot(loss.weights, loss.losses(x))), float(mean(x))
        require(
            abs(want - got) <= 1e-8 * max(1.0, abs(want)),
            "mean",
            got,
            f"must equal the loss averaged over the noise, {want:.9g} at x = {np.asarray(x)}",
        )
