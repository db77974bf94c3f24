"""`LocalLoss`: a model's loss on its data at fixed parameters, asked through derivatives.

Built once, asked many times: the gradient, the Hessian and the covariance of examples' gradients are
there as products with vectors, and everything in `curvature` is made of those.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Divergence, InputError, RunError, finite, positive, require
from ._torch import torch
from .checks import check_model
from .measure import Probe
from .noise import GradientNoise, exact_noise

from torch.nn.attention import SDPBackend, sdpa_kernel  # isort: skip
from torch.utils import _pytree as pytree  # isort: skip

Tensor = Any
Module = Any
Vector = NDArray[np.float64]
Losses = Callable[[Any, Any], Any]


class LocalLoss:
    """F(x) + weight_decay |x|^2 / 2 of a model at its present parameters.

    The model is copied (and turned into float64), so that training may go on meanwhile.

    Parameters
    ----------
    model
        In the mode it is to be judged in; a random forward is refused.
    losses
        ``losses(model, batch)`` gives the loss of EACH example, shape (b,): for a classifier
        ``F.cross_entropy(model(x), y, reduction="none")``. Nothing is reduced, so batches of
        unequal size weigh rightly.
    batches
        The data, in batches of any sizes; read once and kept.
    weight_decay
        That of the optimiser.

    Raises
    ------
    InputError
        Losses are reduced, two evaluations differ, or the model cannot be judged (see `Probe`).
    Divergence
        A loss is not finite; says in which batch.

    Examples
    --------
    >>> import torch
    >>> from batchwell.training import LocalLoss
    >>> x, model = torch.tensor([[1.0], [3.0]]), torch.nn.Linear(1, 1, bias=False)
    >>> here = LocalLoss(model, lambda m, x: m(x)[:, 0].square() / 2, [x])
    >>> here.hessian(np.ones(1))
    array([5.])
    """

    def __init__(
        self, model: Module, losses: Losses, batches: Iterable[Any], *, weight_decay: float = 0.0
    ) -> None:
        check_model(model)
        self.model = copy.deepcopy(model).to(torch.float64)
        self.weight_decay = finite("weight_decay", weight_decay)
        self._losses = losses
        self._batches = [pytree.tree_map(_double, batch) for batch in batches]
        require(len(self._batches) > 0, "batches", 0, "needs at least one batch")
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._shapes = [p.shape for p in self._parameters]
        self.sizes = self._check()
        self.n, self.dim = sum(self.sizes), sum(p.numel() for p in self._parameters)
        self._graph: tuple[Any, ...] | None = None
        self.products = 0

    def _check(self) -> list[int]:
        sizes = []
        for k, batch in enumerate(self._batches):
            with torch.no_grad():
                found = self._losses(self.model, batch)
            require(
                isinstance(found, torch.Tensor) and found.dim() == 1,
                "losses",
                tuple(getattr(found, "shape", ())),
                'must have shape (b,), one loss for each example: reduction="none"',
            )
            if not bool(torch.isfinite(found).all()):
                raise Divergence(f"a loss is not finite in batch {k}")
            sizes.append(len(found))
        with torch.no_grad():
            again = self._losses(self.model, self._batches[-1])
        if not torch.allclose(found, again, rtol=1e-12, atol=0):
            raise InputError(
                "losses",
                "random",
                "two evaluations differ: call model.eval() or fix the randomness",
            )
        return sizes

    @property
    def x(self) -> Vector:
        """The parameters (dim,)."""
        return self.flat(self._parameters)

    def value(self) -> float:
        """F + weight_decay |x|^2 / 2."""
        with torch.no_grad():
            sums = [float(self._losses(self.model, b).sum()) for b in self._batches]
        return math.fsum(sums) / self.n + 0.5 * self.weight_decay * float(self.x @ self.x)

    def gradient(self) -> Vector:
        """Gradient (dim,), weight decay included."""
        return self._mean_gradient() + self.weight_decay * self.x

    def hessian(self, v: Vector) -> Vector:
        """H v (dim,), H the Hessian, weight decay included."""
        self.products += 1
        direction = self._parts(v)
        out = np.zeros(self.dim)
        for losses, gradients in self._graphs():
            del losses
            linked = [k for k, g in enumerate(gradients) if g is not None and g.requires_grad]
            found = torch.autograd.grad(
                [gradients[k] for k in linked],
                self._parameters,
                [direction[k] for k in linked],
                retain_graph=True,
                allow_unused=True,
            )
            out += self.flat(found)
        return out / self.n + self.weight_decay * v

    def slopes(self, v: Vector) -> Vector:
        """Every example's gradient times `v`: (n,)."""
        direction = self._parts(v)
        rows = [_each(found, direction, weights) for weights, found in self._weighted_gradients()]
        return np.concatenate(rows)

    def curvatures(self, v: Vector, directions: Vector) -> Vector:
        """Every example's u . H_i v for each u of `directions` (dim, k): (n, k), no weight decay."""
        towards, columns = self._parts(v), [self._parts(u) for u in directions.T]
        rows = []
        for weights, found in self._weighted_gradients():
            pairs = [p for p in zip(found, towards, strict=True) if p[0] is not None]
            along = sum((g * d).sum() for g, d in pairs)
            # Where no loss curves, nothing leads back to the parameters.
            bent = torch.autograd.grad(
                along, self._parameters, create_graph=True, allow_unused=True
            )
            rows.append(np.column_stack([_each(bent, u, weights) for u in columns]))
        return np.concatenate(rows)

    def _weighted_gradients(self) -> Iterable[tuple[Tensor, tuple[Tensor | None, ...]]]:
        """Of each batch, weights and the gradient of the weighted sum of losses, linear in them.

        What is linear in the weights has, as its derivative by them, that of every example.
        """
        for losses, _ in self._graphs(gradients=False):
            weights = torch.zeros_like(losses, requires_grad=True)
            yield (
                weights,
                torch.autograd.grad(
                    losses, self._parameters, weights, create_graph=True, allow_unused=True
                ),
            )

    def covariance(self, v: Vector) -> Vector:
        """Sigma v (dim,), Sigma the covariance of one example's gradient over the data."""
        slopes = self.slopes(v)
        return self.weighted_gradient((slopes - slopes.mean()) / self.n)

    def noise(self, sampling: str = "reshuffle") -> GradientNoise:
        """|grad F|^2, tr Sigma and their ratio from every example: exact for these data."""
        squares, each = 0.0, _Each(self.model, self._losses)
        with Probe(each, examples=None, reduction="sum") as probe:
            for batch in self._batches:
                for _ in range(3):  # the first batch may show what hooks do not see
                    each.zero_grad()
                    loss = each(batch).sum()
                    loss.backward()
                    probe.step(loss)
                    if len(probe.example_norms_squared):
                        break
                squares += float(probe.example_norms_squared.sum())
        self.model.zero_grad()
        plain, full = self._mean_gradient(), self.gradient()
        trace = max(0.0, squares / self.n - float(plain @ plain))
        return exact_noise(float(full @ full), trace, self.n, sampling)

    def moved(self, x: Vector) -> LocalLoss:
        """The same loss at the parameters `x` (dim,)."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other._parameters = [p for p in other.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, part in zip(other._parameters, self._parts(x), strict=True):
                parameter.copy_(part)
        other._graph, other.products = None, 0
        return other

    # ---- sums over batches ----

    def _graphs(self, gradients: bool = True) -> Iterable[tuple[Tensor, tuple[Tensor, ...]]]:
        """Losses of each batch and the gradient of their sum, ready to be differentiated again.

        The graph of a single batch is kept; of several, only one at a time fits for sure.
        """
        if self._graph is not None and len(self._batches) == 1:
            yield self._graph
            return
        for batch in self._batches:
            # Other attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
                losses = self._losses(self.model, batch)
                found: tuple[Any, ...] = ()
                if gradients or len(self._batches) == 1:
                    found = torch.autograd.grad(
                        losses.sum(), self._parameters, create_graph=True, allow_unused=True
                    )
                if len(self._batches) == 1:
                    self._graph = (losses, found)
                yield losses, found

    def _mean_gradient(self) -> Vector:
        return self.weighted_gradient(np.full(self.n, 1.0 / self.n))

    def weighted_gradient(self, weights: Vector) -> Vector:
        """sum_i weights_i g_i, weights (n,)."""
        out, start = np.zeros(self.dim), 0
        for losses, _ in self._graphs(gradients=False):
            part = torch.from_numpy(weights[start : start + len(losses)]).to(losses)
            start += len(losses)
            found = torch.autograd.grad(
                losses, self._parameters, part, retain_graph=True, allow_unused=True
            )
            out += self.flat(found)
        return out

    def flat(self, parts: Iterable[Tensor | None]) -> Vector:
        """Tensors of the parameters' shapes as one vector (dim,), float64; None for zeros."""
        pairs = zip(parts, self._shapes, strict=True)
        rows = [
            np.zeros(math.prod(s)) if p is None else p.detach().double().numpy(force=True).ravel()
            for p, s in pairs
        ]
        return np.concatenate(rows)

    def _parts(self, v: Vector) -> list[Tensor]:
        device = self._parameters[0].device
        whole = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).to(device)
        pieces = whole.split([math.prod(s) for s in self._shapes])
        return [p.reshape(s) for p, s in zip(pieces, self._shapes, strict=True)]


def nearby_minimum(
    local: LocalLoss, *, tolerance: float = 1e-6, max_iterations: int = 200
) -> LocalLoss:
    """The loss at the minimum downhill of `local`, by Newton's method in a trust region.

    Parameters
    ----------
    tolerance
        On |grad F|.
    max_iterations
        Newton steps at most.

    Raises
    ------
    RunError
        Not reached: flat directions (add weight decay), or too few iterations.

    References
    ----------
    Nocedal & Wright, Numerical Optimization (2006), algorithms 4.1 and 7.2.
    """
    from scipy.optimize import minimize

    here = [local]

    def at(x: Vector) -> LocalLoss:
        if not np.array_equal(here[0].x, x):
            here[0] = local.moved(x)
        return here[0]

    found = minimize(
        lambda x: at(x).value(),
        local.x,
        jac=lambda x: at(x).gradient(),
        hessp=lambda x, v: at(x).hessian(v),
        method="trust-ncg",
        options={"gtol": positive("tolerance", tolerance), "maxiter": max_iterations},
    )
    end = at(np.asarray(found.x, dtype=np.float64))
    norm = float(np.linalg.norm(end.gradient()))
    if norm > tolerance:
        raise RunError(
            f"no minimum within {found.nit} Newton steps: |grad F| = {norm:.3g} is above {tolerance:g}"
        )
    return end


class _Each(torch.nn.Module):
    """Losses of each example as one module, however often they call the model."""

    def __init__(self, model: Module, losses: Losses) -> None:
        super().__init__()
        self.model, self._losses = model, losses

    def forward(self, batch: Any) -> Tensor:
        return self._losses(self.model, batch)


def _each(parts: Iterable[Tensor | None], direction: Iterable[Tensor], weights: Tensor) -> Vector:
    """Derivative by the weights, (b,), of the inner product of `parts` with `direction`."""
    linked: list[tuple[Any, Tensor]] = [
        (g, d) for g, d in zip(parts, direction, strict=True) if g is not None and g.requires_grad
    ]
    if not linked:
        return np.zeros(len(weights))
    (row,) = torch.autograd.grad(
        [g for g, _ in linked],
        weights,
        [d for _, d in linked],
        retain_graph=True,
        allow_unused=True,
    )
    return np.zeros(len(weights)) if row is None else np.asarray(row.numpy(force=True))


def _double(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        return leaf.to(torch.float64)
    return leaf
