"""`AccumulationProbe`: gradient noise from gradients that are there anyway.

Where a step has several backward passes, or several processes, their gradients differ by noise: the
norm of each and that of their mean are all it takes. Any layer will do; the price is one
pass over each gradient, and fewer differences to learn from than with `Probe`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack, final

from ..errors import Divergence, require
from ._torch import torch
from .checks import check_modes
from .noise import StepNoise, noise_factor, solve_step, weight_factor
from .norms import full
from .steps import ProbeOptions, StepProbe, gradients, norm_squared
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

    Under ``DistributedDataParallel`` each process's gradient is looked at before the all-reduce, and
    compared with what comes back of it; one number travels besides. Options are those that
    `Probe` shares with it (all but ``examples`` and ``weight_decay``); each step needs at least two
    micro-batches, over all processes. The estimators are `from_accumulated`'s.

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

    def __init__(self, model: Module, **options: Unpack[ProbeOptions]) -> None:
        super().__init__(model, options)
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
                self._micro[-1].norms.append(torch.linalg.vector_norm(full(grad)))

    def _take(self, measured: bool) -> list[_Micro]:
        return [m for m in self._micro if m.norms]

    def _row(self, passes: list[_Micro], loss: Any, step: int, scale: float) -> StepNoise:
        sizes = [m.size for m in passes]
        weights = [w * scale for w in self._weights(sizes)]
        mean = [m.norm_squared() / (m.size * w) ** 2 for m, w in zip(passes, weights, strict=True)]
        small = sum(b * v for b, v in zip(sizes, mean, strict=True))
        factor = sum(b * noise_factor(b, self.data_size, self.sampling) for b in sizes)
        shares = self._shares(sizes, weights, small, factor)
        require(
            shares.parts >= 2,
            "micro-batches",
            shares.parts,
            "must be at least 2 in a step: use Probe",
        )
        small, factor = (value / shares.size for value in shares.sums)
        big = norm_squared([g for g, _ in gradients(self._parameters)]) / shares.unit**2
        if not (math.isfinite(big) and math.isfinite(small)):
            raise Divergence(f"a gradient is not finite at step {step}, batch size {shares.size}")
        big_factor = weight_factor(shares.squares, self.data_size, self.sampling)
        return solve_step(small, factor, big, big_factor, shares.size)

    def _next(self) -> None:
        self._micro = []

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
