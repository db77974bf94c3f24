"""Per-example gradients of any module by running it again, one example at a time.

For what no rule of `norms` knows: the module's own forward and backward, vectorised over examples
where torch can (`torch.func.vmap`), else in a loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._torch import torch
from .norms import full

from torch.nn.attention import SDPBackend, sdpa_kernel  # isort: skip
from torch.utils import _pytree as pytree  # isort: skip

Tensor = Any
Module = Any
# Gradients formed at once: bounds the memory that a wide module takes.
MAX_NUMBERS = 2**25


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: its arguments, and where its outputs' gradients will be.

    `cotangents` has one entry for each tensor among the outputs, None where no gradient came.
    """

    leaves: tuple[Any, ...]
    spec: Any
    cotangents: list[Tensor | None]
    precision: tuple[str, Any, bool]  # device, dtype and whether autocast was on

    def as_it_was(self) -> Any:
        """A context in which the module computes in the precision of the call."""
        device, dtype, on = self.precision
        return torch.autocast(device, dtype, enabled=on, cache_enabled=False)


def record(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> tuple[Call, list[Any]]:
    """The call, and the output's tensors to wait for."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    kept = tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in leaves)
    outputs = _tensors(output)
    device = next((v.device.type for v in outputs), "cpu")
    on = torch.is_autocast_enabled(device)
    precision = device, torch.get_autocast_dtype(device), on
    return Call(kept, spec, [None] * len(outputs), precision), outputs


def _tensors(tree: Any) -> list[Any]:
    return [v for v in pytree.tree_leaves(tree) if isinstance(v, torch.Tensor)]


def gradients(
    module: Module,
    names: Sequence[str],
    call: Call,
    rows: slice,
    batch_size: int,
    batch_dim: int = 0,
) -> dict[str, Tensor]:
    """Gradients (m, *shape) of the parameters `names` (dotted, below `module`) for the examples `rows`.

    Raises
    ------
    ValueError
        The output has no dimension of the batch's size: examples cannot be told apart.
    """
    axes = [_axis(leaf, batch_size, batch_dim) for leaf in call.leaves]
    out_axes = [_axis(c, batch_size, batch_dim) for c in call.cotangents]
    if any(c is not None and a is None for c, a in zip(call.cotangents, out_axes, strict=True)):
        raise ValueError("its output has no row for each example")
    own = dict(module.named_parameters(remove_duplicate=False))
    state = {**own, **{k: v.clone() for k, v in module.named_buffers()}}
    wanted = {name: own[name].detach() for name in names}

    def scalar(chosen: dict[str, Tensor], leaves: list[Any], cotangents: list[Any]) -> Tensor:
        args, kwargs = pytree.tree_unflatten(_with_axis(leaves, axes), call.spec)
        frozen = {k: v.detach() for k, v in state.items()}
        now = {**frozen, **_aliases(own, chosen)}
        out = torch.func.functional_call(module, now, args, kwargs, tie_weights=False)
        back = _with_axis(cotangents, out_axes)
        pairs = zip(_tensors(out), back, strict=True)
        return sum((o * c.detach()).sum() for o, c in pairs if c is not None)

    one = torch.func.grad(scalar)
    leaves = [_rows(v, a, rows) for v, a in zip(call.leaves, axes, strict=True)]
    cotangents = [_rows(v, a, rows) for v, a in zip(call.cotangents, out_axes, strict=True)]
    with call.as_it_was():
        return _for_each(one, wanted, leaves, axes, cotangents, out_axes)


def whole_gradient(module: Module, call: Call) -> dict[str, Tensor]:
    """The batch's gradient of each trained parameter, by one more forward and backward.

    Random numbers that the forward draws are put back.
    """
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    buffers = {n: v.clone() for n, v in module.named_buffers()}
    args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
    with torch.random.fork_rng(), torch.enable_grad(), call.as_it_was():
        outputs = _tensors(torch.func.functional_call(module, buffers, args, kwargs))
        pairs = [(o, c) for o, c in zip(outputs, call.cotangents, strict=True) if c is not None]
        ends, cotangents = ([v[k] for v in pairs] for k in (0, 1))
        found = torch.autograd.grad(ends, list(trained.values()), cotangents, allow_unused=True)
    return {n: g for n, g in zip(trained, found, strict=True) if g is not None}


def _aliases(own: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A parameter that is there under two names is replaced under both."""
    by_id = {id(own[name]): value for name, value in chosen.items()}
    return {name: by_id[id(p)] for name, p in own.items() if id(p) in by_id}


def _axis(leaf: Any, batch_size: int, batch_dim: int) -> int | None:
    if isinstance(leaf, torch.Tensor) and leaf.dim() > batch_dim:
        return batch_dim if leaf.shape[batch_dim] == batch_size else None
    return None


def _rows(leaf: Any, axis: int | None, rows: slice) -> Any:
    return leaf if axis is None else leaf.movedim(axis, 0)[rows]


def _with_axis(leaves: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    """One example as a batch of one."""
    return [v if a is None else v.unsqueeze(a) for v, a in zip(leaves, axes, strict=True)]


def _for_each(
    one: Callable[..., dict[str, Tensor]],
    wanted: dict[str, Tensor],
    leaves: list[Any],
    axes: Sequence[int | None],
    cotangents: list[Any],
    out_axes: Sequence[int | None],
) -> dict[str, Tensor]:
    first = [None if a is None else 0 for a in axes], [None if a is None else 0 for a in out_axes]
    numbers = max(1, sum(v.numel() for v in wanted.values()))
    try:
        many = torch.func.vmap(
            one, in_dims=(None, *first), chunk_size=max(1, MAX_NUMBERS // numbers)
        )
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            # Which kernels vmap has to loop over is no concern of the user's.
            warnings.simplefilter("ignore", UserWarning)
            return many(wanted, leaves, cotangents)
    except (RuntimeError, ValueError, NotImplementedError):
        # What vmap cannot batch (data-dependent control flow, recurrent kernels) is looped over.
        count = next(v.shape[0] for v, a in zip(cotangents, out_axes, strict=True) if a is not None)
        each = [
            one(
                wanted,
                [v if a is None else v[k] for v, a in zip(leaves, axes, strict=True)],
                [v if a is None else v[k] for v, a in zip(cotangents, out_axes, strict=True)],
            )
            for k in range(count)
        ]
        return {name: torch.stack([full(g[name]) for g in each]) for name in wanted}
