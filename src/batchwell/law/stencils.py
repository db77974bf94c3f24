"""Non-negative stencils for full diffusion tensors on Cartesian grids.

Any positive definite tensor is a non-negative combination of e e^T with a few short integer
offsets e (Selling's decomposition), so the diffusion splits into one-dimensional ones along
grid lines and its discretisation can be an M-matrix whatever the angle of the noise.

Source: Selling (1874); Fehrenbach & Mirebeau, "Sparse non-negative stencils for anisotropic
diffusion" (J. Math. Imaging Vis. 49, 2014).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_STEPS = 200


def decompose(tensor: Floats) -> tuple[Floats, Ints]:
    """Weights (n, k) >= 0 and offsets (n, k, d) with ``tensor = sum_k weight e e^T``.

    `tensor` is (n, d, d), positive definite, d = 1, 2 or 3; k = d (d + 1) / 2.

    Examples
    --------
    >>> a = np.array([[[1.0, 0.9], [0.9, 2.0]]])
    >>> w, e = decompose(a)
    >>> bool((w >= 0).all()), np.einsum("nk,nki,nkj->nij", w, e, e).round(12).tolist()
    (True, [[[1.0, 0.9], [0.9, 2.0]]])
    """
    n, d, _ = tensor.shape
    if d == 1:
        return tensor[:, :, 0], np.ones((n, 1, 1), dtype=np.int64)
    base = np.concatenate([np.eye(d, dtype=np.int64), -np.ones((1, d), dtype=np.int64)])
    b = np.broadcast_to(base, (n, d + 1, d)).copy()
    pairs = list(itertools.combinations(range(d + 1), 2))
    scale = 1e-14 * np.trace(tensor, axis1=1, axis2=2)
    active = np.arange(n)
    for _ in range(MAX_STEPS):
        for i, j in pairs:
            product = np.einsum("nx,nxy,ny->n", b[active, i], tensor[active], b[active, j])
            bad = active[product > scale[active]]
            _flip(b, bad, i, j, d)
        worst = np.stack(
            [
                np.einsum("nx,nxy,ny->n", b[active, i], tensor[active], b[active, j])
                for i, j in pairs
            ]
        )
        active = active[(worst > scale[active]).any(axis=0)]
        if not active.size:
            break
    else:
        raise ArithmeticError("no obtuse superbase: the tensor is not positive definite")
    products = [-np.einsum("nx,nxy,ny->n", b[:, i], tensor, b[:, j]) for i, j in pairs]
    weights = np.maximum(np.stack(products, axis=1), 0.0)
    return weights, np.stack([_dual(b, i, j, d) for i, j in pairs], axis=1)


def _flip(b: Ints, rows: Ints, i: int, j: int, d: int) -> None:
    """Selling's step on the rows where vectors i and j make an acute angle."""
    if not rows.size:
        return
    u = b[rows, i].copy()
    others = [k for k in range(d + 1) if k not in (i, j)]
    if d == 2:
        b[rows, others[0]] = u - b[rows, j]
    else:
        for k in others:
            b[rows, k] += u
    b[rows, i] = -u


def _dual(b: Ints, i: int, j: int, d: int) -> Ints:
    others = [k for k in range(d + 1) if k not in (i, j)]
    if d == 2:
        v = b[:, others[0]]
        return np.stack([-v[:, 1], v[:, 0]], axis=1)
    return np.cross(b[:, others[0]], b[:, others[1]])


def bernoulli(z: Floats) -> Floats:
    """Z / (exp(z) - 1), without cancellation or overflow."""
    z = np.asarray(z, dtype=np.float64)
    small = np.abs(z) < 1e-5
    safe = np.where(small, 1.0, np.minimum(z, 700.0))
    return np.where(small, 1 - z / 2 + z * z / 12, safe / np.expm1(safe))
