"""`Probe`: the gradient noise of a model while it trains, as a by-product of its own backward.

The user keeps the loop; the probe looks at it through hooks and leaves it bit-identical.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Unpack, final

from ..errors import Divergence, InputError, finite, whole
from . import per_example
from ._torch import torch
from .checks import (
    check_forward,
    check_modes,
    check_reduction,
    generator_state,
    reduction_of,
)
from .noise import StepNoise, solve_step, weight_factor
from .norms import full
from .steps import ProbeOptions, StepProbe, gradients, norm_squared, processes
from .watch import Pass, Watch

Tensor = Any
Module = Any
EXAMPLES = 32
_TOLERANCE = 1e-3  # of a gradient pieced together in float32
_LOST = 1e-4  # of the whole gradient: a part so small is lost in the square of its norm


@final
class Probe(StepProbe):
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
        "mean" or "sum": how the loss is reduced over a batch. One that divides by weights, of classes
        or of tokens that count, is a mean in which an example weighs as much as it did there.
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

    method = "per-example gradient norms"

    def __init__(
        self,
        model: Module,
        *,
        examples: int | None = EXAMPLES,
        weight_decay: float = 0.0,
        **options: Unpack[ProbeOptions],
    ) -> None:
        super().__init__(model, options)
        self.weight_decay = finite("weight_decay", weight_decay)
        count = None if examples is None else whole("examples", examples, 2)
        self._watch = Watch(model, count, self.batch_dim)
        self._watch.before, self._watch.after = self._before_forward, self._after_forward
        self._generator_state: Tensor = None
        self._norms: list[tuple[Tensor, float]] = []
        self.notes: list[str] = []

    # ---- what the user calls ----

    @property
    def example_norms_squared(self) -> Tensor:
        """|g_i|^2 (m,), float64, of the examples looked at in the last measured step; maybe none."""
        parts = [norms / unit for norms, unit in self._norms]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    @property
    def fallbacks(self) -> dict[str, str]:
        """Parameters whose gradients are run again for single examples, and why: these cost more."""
        return dict(self._watch.reasons)

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state: the step count, the window, and what was found out on the first batch."""
        layout = None if self._watch.trial else self._watch.run_again_layout()
        return {**super().state_dict(), "layout": layout}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the next numbers are those of a probe that had not stopped.

        Raises
        ------
        InputError
            The state is of another model.
        """
        super().load_state_dict(state)
        if state.get("layout") is not None:
            try:
                self._watch.load_layout(state["layout"])
            except (KeyError, AttributeError) as error:
                raise InputError("state", str(error), "is of another model") from None
        self._next()

    def _next(self) -> None:
        self._watch.wait(self.measuring)
        self._watch.offset = self.steps

    def _remove(self) -> None:
        self._watch.remove()

    # ---- one step ----

    def _before_forward(self) -> None:
        check_modes(self._modes, self.dropout)
        if self._watch.trial:
            self._generator_state = generator_state(self.model)

    def _after_forward(self) -> None:
        if self._watch.trial:
            check_forward(self.model, self._generator_state, self.dropout)

    def _take(self, measured: bool) -> list[Pass] | None:
        if not measured:
            return []
        try:
            return self._watch.take()
        except ValueError as error:
            raise InputError("model", type(self.model).__name__, str(error)) from None

    def _row(self, passes: list[Pass], loss: Any, step: int, scale: float) -> StepNoise | None:
        sizes = [p.size for p in passes]
        self._norms = []
        if passes[0].trial:
            if isinstance(loss, torch.Tensor):
                check_reduction(self.reduction, reduction_of(loss, passes[-1].output_nodes))
            if not self._verify(passes):
                return None
        weights = [w * scale for w in self._weights(sizes)]
        raw = [p.norms_squared() for p in passes]
        self._norms = [(r, w**2) for r, w in zip(raw, weights, strict=True)]
        small = sum(b * float(r.mean()) / u for b, (r, u) in zip(sizes, self._norms, strict=True))
        shares = self._shares(sizes, weights, small)
        # One example alone, the rest of an epoch, says nothing on noise.
        if shares.size == 1:
            return None
        small = shares.sums[0] / shares.size
        plain, penalised = (
            v / shares.unit**2 for v in self._gradient_norms(self.weight_decay * shares.unit)
        )
        if not (math.isfinite(plain) and math.isfinite(small)):
            raise Divergence(f"a gradient is not finite at step {step}, batch size {shares.size}")
        factor = weight_factor(shares.squares, self.data_size, self.sampling)
        row = solve_step(small, 1.0, plain, factor, shares.size)
        # A penalty moves every example's gradient alike: it is no noise.
        moved = row.gradient_norm_squared + penalised - plain
        return StepNoise(moved, row.noise_trace, shares.size)

    def _gradient_norms(self, decay: float) -> tuple[float, float]:
        """|G|^2 and |G + decay x|^2 of the gradient that the optimiser will get."""
        pairs = gradients(self._watch.parameters.values())
        grads = [g for g, _ in pairs]
        plain = norm_squared(grads)
        if decay == 0:
            return plain, plain
        return plain, norm_squared([g + decay * x for g, x in pairs])

    # ---- the first batch ----

    def _verify(self, passes: list[Pass]) -> bool:
        """Whether hooks saw the whole gradient; what they did not is run again from here on."""
        watch = self._watch
        if processes(self.model) > 1:
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
        if missed & watch.demoted:
            raise InputError(
                "model",
                type(self.model).__name__,
                "makes examples depend on each other: run one by one, their gradients do not add "
                "up to the batch's",
            )
        # One example cannot be mixed up with others: those to come are still to be checked.
        watch.trial = bool(missed) or max(p.size for p in passes) == 1
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
        grad = full(parameter.grad).to(torch.float64)
        seen = sum((full(v).to(torch.float64) for v in parts), torch.zeros_like(grad))
        # Where examples cancel, rounding is that of the single ones; and what is lost in the
        # whole gradient is lost in its norm.
        spread, whole = (
            math.sqrt(sum(float(v.sum()) for p in passes for k, v in p.norms.items() if k in keys))
            for keys in ({pid}, self._watch.parameters)
        )
        bound = _tolerance(passes) * (float(grad.norm()) + 1e-2 * spread)
        return float((seen - grad).norm()) <= bound + _LOST * whole

    def _mixed_up(self, passes: list[Pass]) -> set[int]:
        """Parameters whose norms of the first examples differ when these are run by themselves."""
        now, watch = passes[0], self._watch
        assert now.call is not None
        names = {n: k for n, k in watch.ids.items() if watch.parameters[k].requires_grad}
        rows = slice(0, min(2, now.size))
        try:
            with watch.unwatched():
                alone = per_example.gradients(
                    self.model, list(names), now.call, rows, now.size, watch.batch_dim
                )
        except (ValueError, RuntimeError):
            self.notes.append("the model cannot be run for one example: its layout is not verified")
            return set()
        found, unseen = (
            set(),
            torch.zeros(now.size, device=watch.parameters[next(iter(watch.parameters))].device),
        )
        whole = math.sqrt(max((float(v.max()) for v in now.norms.values()), default=0.0))
        for name, pid in names.items():
            exact = alone[name].reshape(rows.stop, -1).double().norm(dim=1)
            seen = now.norms.get(pid, unseen).double().sqrt()
            bound = _tolerance(passes) * (exact + 1e-2 * seen.max()) + _LOST * whole
            if bool(((seen[rows] - exact).abs() > bound).any()):
                found.add(pid)
        return found


def _tolerance(passes: list[Pass]) -> float:
    """Of a gradient pieced together, in the precision that it came back in."""
    return max(_TOLERANCE, 8 * max(p.rounding for p in passes))
