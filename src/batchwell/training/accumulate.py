"""`AccumulationProbe`: gradient noise from gradients that are there anyway.

Where a step has several backward passes, or several processes, their gradients differ by noise: the
norm of each and that of their mean are all it takes. Any layer will do; the price is one
pass over each gradient, and fewer differences to learn from than with `Probe`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

from ..errors import Divergence, RunError, finite, require, whole
from ._torch import torch
from .checks import check_loss, check_modes
from .noise import StepNoise, noise_factor, solve_step, weight_factor
from .steps import WINDOW, StepProbe, gradients, norm_squared, over_processes, processes, strided
from .watch import examples_in

Tensor = Any
Module = Any


@dataclass(eq=False)
class _Micro:
    size: int
    norms: list[Tensor] = field(default_factory=list)  # of each parameter's gradient

    def norm_squared(self) -> float:
        return sum(v * v for v in torch.stack([n.float() for n in self.norms]).tolist())


@final
class AccumulationProbe(StepProbe):
    """Measures the gradient noise from micro-batches, or from the processes of DDP.

    Parameters are those of `Probe`; each step needs at least two micro-batches, over all
    processes. The estimators are `from_accumulated`'s.

    Raises
    ------
    InputError
        As `Probe`; and a step with a single micro-batch.

    Examples
    --------
    >>> import torch
    >>> from batchwell.training import AccumulationProbe
    >>> model, data = torch.nn.Linear(3, 1), torch.arange(120.0).reshape(40, 3).sin()
    >>> with AccumulationProbe(model, data_size=40) as probe:
    ...     for step in data.split(20):
    ...         for batch in step.split(5):
    ...             loss = (model(batch) - 1).square().mean()
    ...             (loss / 4).backward()
    ...         _ = probe.step(loss)
    ...         model.zero_grad()
    ...     probe.noise().steps
    2
    """

    method = "norms of micro-batches' gradients"

    def __init__(
        self,
        model: Module,
        *,
        data_size: int | None = None,
        sampling: str = "reshuffle",
        reduction: str = "mean",
        micro_batches: str | None = None,
        every: int = 1,
        window: int = WINDOW,
        dropout: str = "refuse",
        batch_dim: int = 0,
    ) -> None:
        super().__init__(
            model,
            data_size=data_size,
            sampling=sampling,
            reduction=reduction,
            micro_batches=micro_batches,
            every=every,
            window=window,
            dropout=dropout,
        )
        self.batch_dim = whole("batch_dim", batch_dim, 0)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._micro: list[_Micro] = []
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self._handles += [p.register_hook(partial(self._came_back, p)) for p in self._parameters]

    def _begin(self, module: Module, args: Any, kwargs: Any) -> None:
        if module is not self.model or not self.measuring or not torch.is_grad_enabled():
            return
        check_modes(self._modes, self.dropout)
        if self._micro and not self._micro[-1].norms:
            self._micro.pop()  # a forward that was only looked at
        self._micro.append(_Micro(examples_in(args, kwargs, self.batch_dim)))

    def _came_back(self, parameter: Tensor, grad: Tensor) -> None:
        if self.measuring and self._micro:
            with torch.no_grad():
                self._micro[-1].norms.append(torch.linalg.vector_norm(strided(grad)))

    def step(self, loss: Any, *, scale: float = 1.0) -> StepNoise | None:
        """Close one step: see `StepProbe.step`."""
        step, measured = self.steps, self.measuring
        micro, self._micro = [m for m in self._micro if m.norms], []
        self.steps += 1
        check_loss(loss, step, sum(m.size for m in micro))
        if not measured:
            return None
        if not micro:
            raise RunError(f"step {step}: the model's forward was not called, or without gradients")
        row = self._row(micro, step, finite("scale", scale))
        if row is not None:
            self._rows.append(row)
        return row

    def _row(self, micro: list[_Micro], step: int, scale: float) -> StepNoise | None:
        sizes, world = [m.size for m in micro], processes(self.model)
        weights = self._weights(sizes)
        unit = sum(b * w for b, w in zip(sizes, weights, strict=True))  # 1, or B of a sum
        pairs = list(zip(micro, weights, strict=True))
        small = sum(m.size * m.norm_squared() / (m.size * w * scale) ** 2 for m, w in pairs)
        factors = (noise_factor(b, self.data_size, self.sampling) for b in sizes)
        small_factor = sum(b * c for b, c in zip(sizes, factors, strict=True))
        squares = sum(b * (w / unit) ** 2 for b, w in zip(sizes, weights, strict=True))
        local = [small, small_factor, squares, sum(sizes), len(sizes)]
        small, small_factor, squares, size, count = over_processes(self.model, local)
        require(
            count >= 2, "micro-batches", round(count), "must be at least 2 in a step: use Probe"
        )
        big = norm_squared([g for g, _ in gradients(self._parameters)]) / (unit * scale) ** 2
        if not (math.isfinite(big) and math.isfinite(small)):
            raise Divergence(f"a gradient is not finite at step {step}, batch size {round(size)}")
        big_factor = weight_factor(squares / world**2, self.data_size, self.sampling)
        return solve_step(small / size, small_factor / size, big, big_factor, round(size))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
