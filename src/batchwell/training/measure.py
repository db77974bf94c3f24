"""`Probe`: the gradient noise of a model while it trains, as a by-product of its own backward.

The user keeps the loop; the probe looks at it through hooks and leaves it bit-identical.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ..errors import Divergence, InputError, RunError, finite, one_of, whole
from . import per_example
from ._torch import torch
from .checks import (
    check_forward,
    check_loss,
    check_model,
    check_modes,
    check_reduction,
    reduction_of,
)
from .noise import (
    SAMPLING_MODES,
    GradientNoise,
    StepNoise,
    combine,
    solve_step,
    weight_factor,
)
from .watch import Pass, Watch

Tensor = Any
Module = Any
WINDOW = 20
EXAMPLES = 32
_TOLERANCE = 1e-3  # of a gradient pieced together in float32
_watched: WeakSet[Any] = WeakSet()


class Probe:
    """Measures the gradient noise of `model` in an ordinary training loop.

    Parameters
    ----------
    model
        What is trained. Its own ``forward`` must be called, and its outputs lead to the loss.
    data_size
        Examples n in the data set; None for a stream. Without it shuffled epochs bias
        |grad F|^2 by -tr Sigma / (n - 1).
    sampling
        "reshuffle" (what a shuffling loader does), "without_replacement", "with_replacement".
    reduction
        "mean" or "sum": how the loss is reduced over a batch.
    micro_batches
        Where a step has several backward passes: "equal" (each loss divided by their
        number) or "by_size" (each multiplied by its share of the examples).
    every
        Measure every so many steps.
    window
        The estimates are means over the last `window` measured steps.
    examples
        At most so many examples of each batch are looked at; None for all.
    weight_decay
        That of the optimiser, if |grad F|^2 is to be of the penalised loss
        F + weight_decay |x|^2 / 2.
    dropout
        "refuse", or "noise": the randomness of a forward counts as gradient noise.
    batch_dim
        Which dimension of the inputs counts examples.

    Raises
    ------
    InputError
        Named with its remedy: BatchNorm in train mode, a random forward, a loss reduced in another
        way than declared, a second probe on the same model, a gradient that the hooks did not
        see all of.
    Divergence
        The loss or a gradient is not finite; says the step.

    Examples
    --------
    >>> import torch
    >>> from batchwell.training import Probe
    >>> model, data = torch.nn.Linear(3, 1), torch.arange(60.0).reshape(20, 3).sin()
    >>> probe = Probe(model, data_size=20)
    >>> for batch in data.split(5):
    ...     loss = (model(batch) - 1).square().mean()
    ...     loss.backward()
    ...     _ = probe.step(loss)  # after backward, before the optimiser
    ...     model.zero_grad()
    >>> noise = probe.noise()
    >>> noise.steps, noise.examples
    (4, 20)
    """

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
        examples: int | None = EXAMPLES,
        weight_decay: float = 0.0,
        dropout: str = "refuse",
        batch_dim: int = 0,
    ) -> None:
        self.model = model
        self.data_size = None if data_size is None else whole("data_size", data_size, 2)
        self.sampling = one_of("sampling", sampling, SAMPLING_MODES)
        self.reduction = one_of("reduction", reduction, ("mean", "sum"))
        if micro_batches is not None:
            one_of("micro_batches", micro_batches, ("equal", "by_size"))
        self.micro_batches = micro_batches
        self.every, self.window = whole("every", every), whole("window", window)
        self.weight_decay = finite("weight_decay", weight_decay)
        self.dropout = dropout
        self._modes = check_model(model, dropout=dropout)
        _claim(model)
        count = None if examples is None else whole("examples", examples, 2)
        self._watch = Watch(model, count, whole("batch_dim", batch_dim, 0))
        self._watch.before, self._watch.after = self._before_forward, self._after_forward
        self._generator_state: Tensor = None
        self._rows: deque[StepNoise] = deque(maxlen=self.window)
        self.steps = 0
        self._norms: list[tuple[Tensor, float]] = []
        self.notes: list[str] = []

    # ---- what the user calls ----

    @property
    def example_norms_squared(self) -> Tensor:
        """|g_i|^2 (m,), float64, of the examples looked at in the last measured step."""
        return torch.cat([norms / unit for norms, unit in self._norms])

    @property
    def fallbacks(self) -> dict[str, str]:
        """Parameters whose gradients are run again for single examples, and why: these cost more."""
        return dict(self._watch.reasons)

    @property
    def measuring(self) -> bool:
        """Whether the step under way is measured."""
        return self._watch.active

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
        step, self.steps = self.steps, self.steps + 1
        measured = self._watch.active
        passes = self._take() if measured else []
        size = sum(p.size for p in passes or ())
        check_loss(loss, step, size)
        row = None
        if measured and passes == []:
            raise RunError(
                f"step {step}: the model's forward was not called, or not with gradients"
            )
        # One example alone, the rest of an epoch, says nothing on noise.
        if measured and passes and (size > 1 or _processes(self.model) > 1):
            if passes[0].trial and isinstance(loss, torch.Tensor):
                check_reduction(self.reduction, reduction_of(loss, passes[-1].output_nodes))
            if not passes[0].trial or self._verify(passes):
                row = self._row(passes, step, finite("scale", scale))
                self._rows.append(row)
        self._watch.active = self.steps % self.every == 0
        self._watch.offset = self.steps
        return row

    def noise(self) -> GradientNoise:
        """The noise over the last `window` measured steps, with intervals.

        Raises
        ------
        InputError
            No step has been measured yet.
        """
        return combine(
            self._rows,
            sampling=self.sampling,
            data_size=self.data_size,
            method="per-example gradient norms",
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state: the step count and the window."""
        rows = [[r.gradient_norm_squared, r.noise_trace, r.batch_size] for r in self._rows]
        return {"steps": self.steps, "window": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps = whole("steps", state["steps"], 0)
        self._rows = deque((StepNoise(*row) for row in state["window"]), maxlen=self.window)
        self._watch.active = self.steps % self.every == 0
        self._watch.offset = self.steps

    def close(self) -> None:
        """Take all hooks off the model."""
        self._watch.remove()
        _watched.difference_update(_with_parameters(self.model))

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    # ---- one step ----

    def _before_forward(self) -> None:
        check_modes(self._modes, self.dropout)
        if self._watch.trial:
            self._generator_state = torch.get_rng_state()

    def _after_forward(self) -> None:
        if self._watch.trial:
            check_forward(self._generator_state, self.dropout)

    def _take(self) -> list[Pass] | None:
        try:
            return self._watch.take()
        except ValueError as error:
            raise InputError("model", type(self.model).__name__, str(error)) from None

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

    def _row(self, passes: list[Pass], step: int, scale: float) -> StepNoise:
        sizes = [p.size for p in passes]
        weights = self._weights(sizes)
        raw = [p.norms_squared() for p in passes]
        self._norms = [(r, (w * scale) ** 2) for r, w in zip(raw, weights, strict=True)]
        small = sum(b * float(r.mean()) / u for b, (r, u) in zip(sizes, self._norms, strict=True))
        squares = sum(b * w * w for b, w in zip(sizes, weights, strict=True))
        unit = sum(b * w for b, w in zip(sizes, weights, strict=True))  # 1, or B of a sum
        small, size, squares = _over_processes(self.model, small, sum(sizes), squares / unit**2)
        plain, penalised = (
            v / (unit * scale) ** 2 for v in self._gradient_norms(self.weight_decay * unit * scale)
        )
        if not (math.isfinite(plain) and math.isfinite(small)):
            raise Divergence(f"a gradient is not finite at step {step}, batch size {size}")
        factor = weight_factor(squares, self.data_size, self.sampling)
        row = solve_step(small / size, 1.0, plain, factor, size)
        # A penalty moves every example's gradient alike: it is no noise.
        return StepNoise(row.gradient_norm_squared + penalised - plain, row.noise_trace, size)

    def _gradient_norms(self, decay: float) -> tuple[float, float]:
        """|G|^2 and |G + decay x|^2 of the gradient that the optimiser will get."""
        pairs = [
            (_strided(p.grad), p.detach())
            for p in self._watch.parameters.values()
            if p.grad is not None and p.requires_grad
        ]
        if not pairs:
            raise RunError("no gradient: call step() after backward() and before zero_grad()")
        grads = [g for g, _ in pairs]
        plain = _norm_squared(grads)
        if decay == 0:
            return plain, plain
        return plain, _norm_squared([g + decay * x for g, x in pairs])

    # ---- the first batch ----

    def _verify(self, passes: list[Pass]) -> bool:
        """Whether hooks saw the whole gradient; what they did not is run again from here on."""
        watch = self._watch
        if _processes(self.model) > 1:
            self.notes.append("several processes: what hooks see was not compared with DDP's sum")
            watch.trial = False
            return True
        hooks = {pid: [p.sums[pid] for p in passes if pid in p.sums] for pid in watch.parameters}
        missed = {pid for pid, parts in hooks.items() if not self._adds_up(pid, parts, passes)}
        whole = self._run_whole(passes)
        explained = {pid for pid, part in whole.items() if self._adds_up(pid, [part], passes)}
        if not missed and len(explained) == len(watch.parameters):
            missed = self._mixed_up(passes)
        elif not missed:
            self.notes.append(
                "the loss depends on more than the model's outputs, or the model cannot be run "
                "again: its layout was not verified"
            )
        if lost := missed - explained:
            raise InputError(
                f"model.{watch.names[min(lost, key=list(watch.names).index)]}",
                "gradient",
                "has a part that comes from no example (a penalty in the loss: use the optimiser's "
                "weight_decay), or was clipped, or not zeroed before this step",
            )
        watch.trial = bool(missed)
        if missed:
            watch.demote(missed, "is used outside of the module that holds it")
        return not missed

    def _run_whole(self, passes: list[Pass]) -> dict[int, Tensor]:
        """The gradient that came through the model's outputs, by running it once more."""
        out: dict[int, Tensor] = {}
        if self.dropout == "noise":
            return out
        for now in passes:
            assert now.call is not None
            with self._watch.unwatched(), suppress(RuntimeError, TypeError):
                found = per_example.whole_gradient(self.model, now.call)
                for name, value in found.items():
                    pid = self._watch.ids[name]
                    out[pid] = out[pid] + value if pid in out else value
        return out

    def _adds_up(self, pid: int, parts: list[Tensor], passes: list[Pass]) -> bool:
        """Whether `parts` sum to the gradient that the optimiser gets."""
        parameter = self._watch.parameters[pid]
        if parameter.grad is None or not parameter.requires_grad:
            return True
        grad = _strided(parameter.grad).to(torch.float64)
        seen = torch.stack(parts).sum(0).to(torch.float64) if parts else torch.zeros_like(grad)
        # Where examples cancel, rounding is that of the single ones.
        spread = math.sqrt(sum(float(p.norms[pid].sum()) for p in passes if pid in p.norms))
        return float((seen - grad).norm()) <= _TOLERANCE * (float(grad.norm()) + 1e-2 * spread)

    def _mixed_up(self, passes: list[Pass]) -> set[int]:
        """Parameters whose norms of the first examples differ when these are run by themselves."""
        now, watch = passes[0], self._watch
        assert now.call is not None
        names = {n: k for n, k in watch.ids.items() if k in now.norms}
        rows = slice(0, min(2, now.size))
        try:
            with watch.unwatched():
                alone = per_example.gradients(
                    self.model, list(names), now.call, rows, now.size, watch.batch_dim
                )
        except (ValueError, RuntimeError):
            self.notes.append("the model cannot be run for one example: its layout is not verified")
            return set()
        found = set()
        for name, pid in names.items():
            exact = alone[name].flatten(1).double().norm(dim=1)
            seen = now.norms[pid][rows].double().sqrt()
            bound = _TOLERANCE * (exact + 1e-2 * now.norms[pid].double().sqrt().max())
            if bool(((seen - exact).abs() > bound).any()):
                found.add(pid)
        return found


def _claim(model: Module) -> None:
    modules = _with_parameters(model)
    if any(module in _watched for module in modules):
        raise InputError("model", type(model).__name__, "has a probe already: close() that first")
    _watched.update(modules)


def _with_parameters(model: Module) -> list[Module]:
    return [m for m in model.modules() if m is model or m._parameters]


def _strided(grad: Tensor) -> Tensor:
    grad = grad.coalesce().to_dense() if grad.is_sparse else grad
    return grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad


def _norm_squared(tensors: list[Tensor]) -> float:
    return sum(v * v for v in torch.stack(torch._foreach_norm(tensors)).tolist())


def _processes(model: Module) -> int:
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return 1
    return int(torch.distributed.get_world_size(model.process_group))


def _over_processes(
    model: Module, small: float, size: int, squares: float
) -> tuple[float, int, float]:
    """Sums over the processes of DDP, which averages their gradients with equal weights."""
    world = _processes(model)
    if world == 1:
        return small, size, squares
    device = next(model.parameters()).device
    values = torch.tensor([small, size, squares], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values, group=model.process_group)
    small, count, squares = values.tolist()
    return small, round(count), squares / world**2
