"""What all probes share: the window of measured steps, claims on a model, weights of micro-batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict
from weakref import WeakSet

from ..errors import InputError, RunError, finite, one_of, whole
from ._torch import torch
from .checks import check_loss, check_model
from .noise import SAMPLING_MODES, GradientNoise, StepNoise, combine
from .norms import full

Tensor = Any
Module = Any
WINDOW = 20
_watched: WeakSet[Any] = WeakSet()


class ProbeOptions(TypedDict, total=False):
    """What all probes may be given: see `Probe`."""

    data_size: int | None
    sampling: str
    reduction: str
    micro_batches: str | None
    every: int
    window: int
    dropout: str
    batch_dim: int


@dataclass(frozen=True)
class Shares:
    """What examples weigh in the gradient that the optimiser gets, over all processes.

    Attributes
    ----------
    unit
        Sum of the weights: 1 of a mean, B of a sum, times the scaler's factor.
    squares
        Sum of the squared weights, divided by unit^2: 1/B where all weigh the same.
    size, parts
        Examples, and passes that they came in.
    sums
        Whatever else was to be summed over the processes.
    """

    unit: float
    squares: float
    size: int
    parts: int
    sums: list[float]


class StepProbe(ABC):
    """A probe on a model's training: closes steps, keeps the last `window` measured ones."""

    method: str  # of the estimates

    def __init__(self, model: Module, options: ProbeOptions) -> None:
        for key in options:
            one_of("option", key, ProbeOptions.__annotations__)
        size, micro = options.get("data_size"), options.get("micro_batches")
        self.model = model
        self.data_size = None if size is None else whole("data_size", size, 2)
        self.sampling = one_of("sampling", options.get("sampling", "reshuffle"), SAMPLING_MODES)
        self.reduction = one_of("reduction", options.get("reduction", "mean"), ("mean", "sum"))
        if micro is not None:
            one_of("micro_batches", micro, ("equal", "by_size"))
        self.micro_batches = micro
        self.every = whole("every", options.get("every", 1))
        self.window = whole("window", options.get("window", WINDOW))
        self.batch_dim = whole("batch_dim", options.get("batch_dim", 0), 0)
        self.dropout = options.get("dropout", "refuse")
        self._modes = check_model(model, dropout=self.dropout)
        self._rows: deque[StepNoise] = deque(maxlen=self.window)
        self.steps = 0
        _claim(model)

    def step(self, loss: Any, *, scale: float = 1.0) -> StepNoise | None:
        """Close one step: call it after the last ``backward()``, before clipping and the optimiser.

        Parameters
        ----------
        loss
            The loss that ``backward()`` was called on; the last one of several.
        scale
            The factor of a gradient scaler on the loss (``GradScaler.get_scale()``).

        Returns
        -------
        What this step says, unbiased but very noisy, or None where it is not measured. Ask `noise`
        for an answer with an interval.
        """
        step, measured = self.steps, self.measuring
        passes = self._take(measured)
        self.steps += 1
        check_loss(loss, step, sum(p.size for p in passes or ()))
        if measured and passes == []:
            raise RunError(f"step {step}: the model's forward was not called, or without gradients")
        try:
            factor = finite("scale", scale)
            row = self._row(passes, loss, step, factor) if measured and passes else None
        finally:
            self._next()
        if row is not None:
            self._rows.append(row)
        return row

    @abstractmethod
    def _take(self, measured: bool) -> list[Any] | None:
        """The passes of this step, each with a `size`; None if they cannot be used."""

    @abstractmethod
    def _row(self, passes: list[Any], loss: Any, step: int, scale: float) -> StepNoise | None:
        """What the passes say, if anything."""

    @abstractmethod
    def _next(self) -> None:
        """Get ready for the next step."""

    @abstractmethod
    def _remove(self) -> None:
        """Take all hooks off."""

    @property
    def measuring(self) -> bool:
        """Whether the step under way is measured."""
        return self.steps % self.every == 0

    @property
    def known(self) -> bool:
        """Whether a step has been measured, so that there is an answer."""
        return len(self._rows) > 0

    def noise(self) -> GradientNoise:
        """The noise over the last `window` measured steps, with intervals.

        Raises
        ------
        InputError
            No step has been measured yet.
        """
        return combine(
            self._rows, sampling=self.sampling, data_size=self.data_size, method=self.method
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state: the step count and the window."""
        rows = [[r.gradient_norm_squared, r.noise_trace, r.batch_size] for r in self._rows]
        return {"steps": self.steps, "window": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps = whole("steps", state["steps"], 0)
        self._rows = deque((StepNoise(*row) for row in state["window"]), maxlen=self.window)

    def close(self) -> None:
        """Take all hooks off the model."""
        self._remove()
        _watched.difference_update(_with_parameters(self.model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _weights(self, sizes: list[int]) -> list[float]:
        """What each example of each pass weighs in the gradient that was summed up."""
        if self.reduction == "sum":
            return [1.0] * len(sizes)
        if len(set(sizes)) > 1 and self.micro_batches is None:
            raise InputError(
                "micro_batches",
                None,
                f'sizes {sizes} differ: say "by_size" (each loss times its share of the examples) '
                'or "equal" (each divided by their number)',
            )
        if self.micro_batches == "by_size":
            return [1.0 / sum(sizes)] * len(sizes)
        return [1.0 / (len(sizes) * b) for b in sizes]

    def _shares(self, sizes: list[int], weights: list[float], *more: float) -> Shares:
        """What each example of each pass, with its weight in this process's gradient, comes to."""
        local = [
            sum(b * w for b, w in zip(sizes, weights, strict=True)),
            sum(b * w * w for b, w in zip(sizes, weights, strict=True)),
            sum(sizes),
            len(sizes),
        ]
        world = processes(self.model)  # whose gradients DDP averages with equal weights
        total, squares, size, parts, *sums = over_processes(self.model, [*local, *more])
        return Shares(total / world, squares / total**2, round(size), round(parts), sums)


def _claim(model: Module) -> None:
    modules = _with_parameters(model)
    if any(module in _watched for module in modules):
        raise InputError("model", type(model).__name__, "has a probe already: close() that first")
    _watched.update(modules)


def _with_parameters(model: Module) -> list[Module]:
    return [m for m in model.modules() if m is model or m._parameters]


def norm_squared(tensors: list[Tensor]) -> float:
    """Squared norm of all tensors together."""
    return sum(v * v for v in torch.stack(torch._foreach_norm(tensors)).tolist())


def processes(model: Module) -> int:
    """Processes that share each update: those over which DDP averages the model's gradient."""
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return 1
    return int(torch.distributed.get_world_size(model.process_group))


def over_processes(model: Module, values: list[float]) -> list[float]:
    """Sums of `values` over the processes of DDP."""
    if processes(model) == 1:
        return values
    device = next(model.parameters()).device
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums, group=model.process_group)
    return list(sums.tolist())


def gradients(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(gradient, parameter) of what the optimiser will move.

    Raises
    ------
    RunError
        There is no gradient.
    """
    pairs = [
        (full(p.grad), p.detach()) for p in parameters if p.grad is not None and p.requires_grad
    ]
    if not pairs:
        raise RunError("no gradient: call step() after backward() and before zero_grad()")
    return pairs
