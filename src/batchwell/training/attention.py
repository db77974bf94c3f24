"""Per-example gradients of `nn.MultiheadAttention`, whose inner products never pass a module.

Its projections are used through `torch.nn.functional`, out of reach of hooks. The few examples
looked at are run through the same attention once more, from the projected queries, keys and values
on; what comes back to those is all that the packed weights' outer products need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._torch import torch
from .norms import Dense, Outer, Uses, full

Tensor = Any
Module = Any
F = torch.nn.functional
_MASKS = ("key_padding_mask", "attn_mask")
_NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


def supported(module: Module) -> bool:
    """Whether it is the usual kind: one width for all inputs, no extra key or value rows."""
    return (
        type(module).forward is torch.nn.MultiheadAttention.forward
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, tensors cut off the graph."""
    named = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    keep = ("query", "key", "value", *_MASKS)
    return {k: v.detach() for k, v in named.items() if k in keep and v is not None}


def uses(module: Module, call: Mapping[str, Tensor], grad: Tensor, rows: slice) -> Uses:
    """What each parameter got from the examples `rows`.

    Parameters
    ----------
    call
        See `arguments`; batch first or second, as the module has it.
    grad
        Gradient at the attention's output.
    """
    first = module.batch_first
    inputs = [full(_batch_first(call[k], first)[rows]) for k in ("query", "key", "value")]
    same = all(call[k].data_ptr() == call["query"].data_ptr() for k in ("key", "value"))
    back = full(_batch_first(grad, first)[rows])
    weights = full(module.in_proj_weight.detach()).chunk(3)
    bias = module.in_proj_bias
    biases = (None,) * 3 if bias is None else full(bias.detach()).chunk(3)
    with torch.enable_grad():
        projected = [
            F.linear(x, w, b).requires_grad_()
            for x, w, b in zip(inputs, weights, biases, strict=True)
        ]
        mixed = _attend(module, projected, call, rows)
    through = back @ full(module.out_proj.weight.detach())
    lefts = torch.autograd.grad(mixed, projected, through)
    return {
        "in_proj_weight": _stacked(lefts, inputs, same),
        "in_proj_bias": Dense(torch.cat([left.sum(1) for left in lefts], 1)),
        "out_proj.weight": Outer(back, mixed.detach()),
        "out_proj.bias": Dense(back.sum(1)),
    }


def _batch_first(x: Tensor, batch_first: bool) -> Tensor:
    return x if batch_first else x.transpose(0, 1)


def _stacked(lefts: tuple[Tensor, ...], inputs: list[Tensor], same: bool) -> Outer | Dense:
    """Three projections, one weight (3 d, d); self-attention is one layer with three outputs."""
    if same:
        return Outer(torch.cat(lefts, 2), inputs[0])
    return Dense(torch.cat([left.mT @ x for left, x in zip(lefts, inputs, strict=True)], 1))


def _attend(
    module: Module, projected: list[Tensor], call: Mapping[str, Tensor], rows: slice
) -> Tensor:
    heads = module.num_heads
    query, key, value = (
        p.reshape(p.shape[0], p.shape[1], heads, -1).transpose(1, 2) for p in projected
    )
    mask = _mask(call, rows, query.shape[0], heads, query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _mask(call: Mapping[str, Tensor], rows: slice, m: int, heads: int, dtype: Any) -> Tensor | None:
    """Both masks as what is added to the scores, (m or 1, heads or 1, T, S)."""
    out = None
    if "attn_mask" in call:
        mask = _additive(call["attn_mask"], dtype)
        if mask.dim() == 3:  # (batch * heads, T, S)
            mask = mask.reshape(-1, heads, *mask.shape[1:])[rows]
        else:
            mask = mask[None, None]
        out = mask
    if "key_padding_mask" in call:
        padding = _additive(call["key_padding_mask"], dtype)[rows].reshape(m, 1, 1, -1)
        out = padding if out is None else out + padding
    return out


def _additive(mask: Tensor, dtype: Any) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
