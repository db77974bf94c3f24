"""Norms of per-example gradients out of an ordinary backward pass ("ghost norms").

The gradient of a weight for one example is a sum of outer products, sum_t left_t right_t^T,
of what came back to the layer's output and of what went into it. Its norm follows from the T x T
inner products of either side, without ever forming the gradient; a parameter used in several places
(an embedding tied to the output) is one longer sum, so that its cross terms are there too.

Sources: Goodfellow, "Efficient per-example gradient computations" (arXiv:1510.01799); Rochette,
Manoel & Tramel (arXiv:1912.06015) for convolutions; Li, Tramer, Liang & Hashimoto, "Large
language models can be strong differentially private learners" (ICLR 2022) for sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._torch import torch

Tensor = Any
Module = Any
nn = torch.nn
F = torch.nn.functional
HALF = (torch.float16, torch.bfloat16)


def full(x: Tensor) -> Tensor:
    """Dense, and not in half precision, where squares overflow and sums lose what is small."""
    x = x.coalesce().to_dense() if x.is_sparse else x
    return x.float() if x.dtype in HALF else x


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients ``sum_t left[:, t] right[:, t]^T`` of m examples: left (m, T, o), right (m, T, i).

    An integer `left`, (m, T), stands for one-hot rows: the tokens of an embedding. `squares`, (m,), are
    the squared norms of `left` where T is 1 and they are known already.
    """

    left: Tensor
    right: Tensor
    squares: Tensor | None = None

    @property
    def lookup(self) -> bool:
        """Whether `left` are tokens."""
        return not self.left.is_floating_point()


@dataclass(frozen=True, eq=False)
class Dense:
    """Gradients of m examples as they are, (m, *shape of the parameter), and their squared norms."""

    values: Tensor
    squares: Tensor | None = None


Use = Outer | Dense
Uses = dict[str, Use]  # what each of a module's parameters got
LayerRule = Callable[[Module, Tensor, Tensor], Uses]


def norms_squared(uses: Sequence[Use], shape: Sequence[int]) -> Tensor:
    """Squared norm (m,) of each example's gradient, the sum of all `uses` of a parameter."""
    if len(uses) == 1 and isinstance(uses[0], Outer) and uses[0].right.shape[1] == 1:
        return _rank_one(uses[0])
    if len(uses) == 1 and uses[0].squares is not None:
        return uses[0].squares
    outers = [use for use in uses if isinstance(use, Outer)]
    if len(outers) == len(uses) and _gram_is_cheaper(outers, shape):
        return _gram(outers)
    rows = sum_of(uses, shape)
    return _squares(rows if rows.dim() == 2 else rows.reshape(len(rows), -1))


def sum_of(uses: Sequence[Use], shape: Sequence[int]) -> Tensor:
    """The gradients themselves, (m, *shape)."""
    parts = [_dense(use, shape) for use in uses]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def total(uses: Sequence[Use], shape: Sequence[int]) -> Tensor:
    """Sum over the examples, (*shape): the batch's gradient."""
    out = None
    for use in uses:
        if isinstance(use, Dense):
            part = use.values.sum(0)
        elif use.lookup:
            part = use.right.new_zeros(tuple(shape))
            part.index_add_(0, use.left.flatten(), use.right.flatten(0, 1))
        else:
            part = (use.left.flatten(0, 1).T @ use.right.flatten(0, 1)).reshape(tuple(shape))
        out = part if out is None else out + part
    return out


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square()


def _rank_one(use: Outer) -> Tensor:
    right = _squares(use.right[:, 0])
    if use.lookup:
        return right
    return right * (_squares(use.left[:, 0]) if use.squares is None else use.squares)


def _gram_is_cheaper(outers: Sequence[Outer], shape: Sequence[int]) -> bool:
    if any(use.lookup for use in outers):
        return True  # the alternative is a whole vocabulary for each example
    length = sum(use.right.shape[1] for use in outers)
    rows = int(shape[0])
    return length * (rows + outers[0].right.shape[2]) < rows * outers[0].right.shape[2]


def _gram(outers: Sequence[Outer]) -> Tensor:
    out = 0.0
    for i, first in enumerate(outers):
        for j, second in enumerate(outers[i:], start=i):
            pairs = (_left_products(first, second) * (first.right @ second.right.mT)).sum((1, 2))
            out = out + (pairs if i == j else 2 * pairs)
    return out


def _left_products(first: Outer, second: Outer) -> Tensor:
    """Inner products (m, T, S) of the left sides of two uses."""
    if first.lookup and second.lookup:
        return (first.left[:, :, None] == second.left[:, None, :]).to(first.right.dtype)
    if second.lookup:
        index = second.left[:, None, :].expand(-1, first.left.shape[1], -1)
        return first.left.gather(2, index)
    if first.lookup:
        return _left_products(second, first).mT
    return first.left @ second.left.mT


def _dense(use: Use, shape: Sequence[int]) -> Tensor:
    if isinstance(use, Dense):
        return use.values
    if use.lookup:
        m, length = use.left.shape
        out = use.right.new_zeros((m, *shape))
        rows = torch.arange(m, device=use.left.device).repeat_interleave(length)
        return out.index_put_((rows, use.left.flatten()), use.right.flatten(0, 1), accumulate=True)
    return (use.left.mT @ use.right).reshape(use.left.shape[0], *shape)


# ---- layers: module, its input and the gradient at its output, (m, ...) both -> uses ----


def linear(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.Linear`, on vectors or on sequences of any shape."""
    if x.dim() == 2:
        squares = _squares(grad)  # both need them
        return {"weight": Outer(grad[:, None], x[:, None], squares), "bias": Dense(grad, squares)}
    m = x.shape[0]
    left, right = grad.reshape(m, -1, grad.shape[-1]), x.reshape(m, -1, x.shape[-1])
    return {"weight": Outer(left, right), "bias": Dense(left.sum(1))}


def convolution(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.Conv1d`, `nn.Conv2d`: a linear layer on patches."""
    m, groups = x.shape[0], module.groups
    patches = _patches(module, x)  # (m, channels * kernel, T)
    left = grad.flatten(2)  # (m, out, T)
    bias = Dense(left.sum(2))
    if groups == 1:
        return {"weight": Outer(left.mT, patches.mT), "bias": bias}
    left = left.reshape(m, groups, -1, left.shape[2])
    patches = patches.reshape(m, groups, -1, patches.shape[2])
    weight = (left @ patches.mT).reshape(m, *module.weight.shape)
    return {"weight": Dense(weight), "bias": bias}


def _patches(module: Module, x: Tensor) -> Tensor:
    # The two-sided padding that the layer itself keeps, last dimension first, as F.pad wants it.
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, padding, mode=mode) if any(padding) else x
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if x.dim() == 3:  # one dimension is two, of height 1
        x, kernel = x.unsqueeze(2), (1, *kernel)
        dilation, stride = (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation=dilation, stride=stride)


def embedding(module: Module, tokens: Tensor, grad: Tensor) -> Uses:
    """`nn.Embedding`: outer products with one-hot rows."""
    m = tokens.shape[0]
    left, right = tokens.reshape(m, -1).long(), grad.reshape(m, -1, grad.shape[-1])
    if module.padding_idx is not None:
        right = right * (left != module.padding_idx)[..., None]
    return {"weight": Outer(left, right)}


def _affine(normalised: Tensor, grad: Tensor, keep: int) -> Uses:
    """Scale and shift of a normalisation; the last `keep` dimensions are the parameter's own."""
    m, own = grad.shape[0], grad.shape[grad.dim() - keep :]
    weight, bias = ((v.reshape(m, -1, *own).sum(1)) for v in (grad * normalised, grad))
    return {"weight": Dense(weight), "bias": Dense(bias)}


def layer_norm(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.LayerNorm`."""
    shape = module.normalized_shape
    return _affine(F.layer_norm(x, shape, eps=module.eps), grad, len(shape))


def rms_norm(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.RMSNorm`."""
    shape = module.normalized_shape
    return _affine(F.rms_norm(x, shape, eps=module.eps), grad, len(shape))


def group_norm(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.GroupNorm`: one scale for each channel."""
    normalised = F.group_norm(x, module.num_groups, eps=module.eps)
    return _affine(_channels_last(normalised), _channels_last(grad), 1)


def batch_norm(module: Module, x: Tensor, grad: Tensor) -> Uses:
    """`nn.BatchNorm` in eval mode: a fixed scale for each channel."""
    mean, variance = full(module.running_mean), full(module.running_var)
    normalised = F.batch_norm(x, mean, variance, eps=module.eps)
    return _affine(_channels_last(normalised), _channels_last(grad), 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


LAYERS: Mapping[type, LayerRule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
}


def rule_of(module: Module) -> LayerRule | None:
    """The rule for a module, or None where only its own forward knows what it computes.

    >>> rule_of(nn.Linear(2, 3)).__name__, rule_of(nn.Bilinear(2, 2, 3))
    ('linear', None)
    """
    for kind in type(module).__mro__:
        if kind in LAYERS:
            # A subclass with a forward or with parameters of its own is another layer.
            same = getattr(type(module), "forward", None) is getattr(kind, "forward", None)
            return LAYERS[kind] if same and set(module._parameters) <= {"weight", "bias"} else None
    return None
