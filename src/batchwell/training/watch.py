"""Hooks on a model that leave, of each forward and backward, the norms of examples' gradients.

Hooks only look: nothing that flows through the model is touched, no random number is drawn, and no
name is added to its state. What a layer's rule (`norms.LAYERS`) does not cover is found out when the
first batch passes, and run again for single examples (`per_example`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import InputError
from . import attention, per_example
from ._torch import torch
from .norms import (
    Dense,
    Use,
    embedding,
    full,
    layer_norm,
    linear,
    norms_squared,
    rms_norm,
    rule_of,
    total,
)

Tensor = Any
Module = Any
nn = torch.nn
_leaves = torch.utils._pytree.tree_leaves
# Rules that do not care how many dimensions lie between the examples and the features.
_ANY_SHAPE = (linear, embedding, layer_norm, rms_norm)
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(eq=False)
class Layer:
    """One watched module and which of its parameters (local name -> id) it answers for."""

    name: str
    module: Module
    ids: dict[str, int]
    kind: str  # "rule", "attention" or "per_example"
    rule: Callable[..., Any] | None = None


@dataclass(eq=False)
class Pass:
    """What one forward and its backward leave: the gradient's parts of the examples `rows`."""

    size: int
    chosen: slice
    trial: bool  # all examples are looked at, to compare their sum with the gradient
    pending: Counter[int] = field(default_factory=Counter)
    uses: dict[int, list[Use]] = field(default_factory=dict)
    norms: dict[int, Tensor] = field(default_factory=dict)  # parameter -> (m,) squared norms
    sums: dict[int, Tensor] = field(default_factory=dict)  # in a trial: the batch's gradient
    deferred: list[Callable[[], None]] = field(default_factory=list)
    rounding: float = 0.0  # of the coarsest numbers that came back
    call: per_example.Call | None = None  # in a trial: the whole model's
    output_nodes: list[Any] = field(default_factory=list)
    returned: bool = False  # whether a gradient came back
    before: list[Pass] = field(default_factory=list)  # forwards still without theirs as it began

    @property
    def rows(self) -> slice:
        """Places in the batch that are looked at."""
        return slice(None) if self.trial else self.chosen

    def came_back(self, grad: Tensor) -> None:
        """A gradient did."""
        self.returned = True
        self.rounding = max(self.rounding, torch.finfo(grad.dtype).eps)

    def norms_squared(self) -> Tensor:
        """Squared norm (m,) of each chosen example's part of the gradient, float64."""
        norms = torch.stack(list(self.norms.values())).sum(0, dtype=torch.float64)
        return norms[self.chosen] if self.trial else norms


class Watch:
    """Per-example norms of `model`, for the passes made while `active`.

    Parameters
    ----------
    examples
        At most so many examples are looked at in each batch, evenly spaced; None for all.
    batch_dim
        Which dimension of inputs counts examples.
    """

    def __init__(self, model: Module, examples: int | None, batch_dim: int) -> None:
        self.model, self.examples, self.batch_dim = model, examples, batch_dim
        self.parameters = {id(p): p for p in model.parameters() if p.requires_grad}
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.ids = {name: pid for pid, name in self.names.items()}
        self.active = self.trial = True
        self.offset = 0
        self.passes: list[Pass] = []
        self.reasons: dict[str, str] = {}  # parameter -> why its gradients are run again
        self.demoted: set[int] = set()  # of these, those for which the whole model is
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self._open: Pass | None = None
        self._busy = False
        self._looked = self._left_over = False  # for gradients from before this step
        self._lost: list[tuple[Layer, str]] = []
        self._layers = self._layout()
        self._handles: list[Any] = []
        self._hook()

    def __deepcopy__(self, memo: Any) -> Watch:
        return self  # hooks on a copy of the model know that they are not on the model

    # ---- layout ----

    def _layout(self) -> dict[str, Layer]:
        layers: dict[str, Layer] = {}
        modules = dict(self.model.named_modules())
        taken: set[str] = set()
        for name, module in modules.items():
            if isinstance(module, nn.MultiheadAttention) and attention.supported(module):
                names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
                self._add(layers, Layer(name, module, self._ids(module, names), "attention"))
                taken.add(f"{name}.out_proj" if name else "out_proj")
        for name, module in modules.items():
            names = tuple(n for n, p in module._parameters.items() if p is not None)
            rule = rule_of(module)
            if name in taken or (name in layers and layers[name].kind == "attention"):
                continue
            if rule is not None and not getattr(module, "scale_grad_by_freq", False):
                self._add(layers, Layer(name, module, self._ids(module, names), "rule", rule))
            elif ids := self._ids(module, names):
                self._run_again(layers, name, ids, f"{type(module).__name__} has no rule")
        return layers

    def _ids(self, module: Module, names: tuple[str, ...]) -> dict[str, int]:
        own = dict(module.named_parameters(remove_duplicate=False))
        return {n: id(own[n]) for n in names if n in own and id(own[n]) in self.parameters}

    @staticmethod
    def _add(layers: dict[str, Layer], layer: Layer) -> None:
        if layer.ids:
            layers[layer.name] = layer

    def _run_again(
        self, layers: dict[str, Layer], name: str, ids: dict[str, int], why: str
    ) -> None:
        """Let the module `name`, or the nearest one around it that is called, be run again."""
        module = self.model.get_submodule(name)
        if isinstance(module, _NEVER_CALLED) or type(module).__name__ == "ParametrizationList":
            parent, _, last = name.rpartition(".")
            self._run_again(layers, parent, {f"{last}.{k}": v for k, v in ids.items()}, why)
            return
        for pid in ids.values():
            self.reasons[self.names[pid]] = why
        if name in layers:  # what a rule had covered is run again too
            layers[name].ids.update(ids)
            layers[name].kind = "per_example"
        else:
            layers[name] = Layer(name, module, dict(ids), "per_example")

    def demote(self, pids: set[int], why: str) -> None:
        """Run the whole model again for these parameters."""
        self.demoted |= pids
        for layer in self._layers.values():
            layer.ids = {k: v for k, v in layer.ids.items() if v not in pids}
        names = {n: id(p) for n, p in self.model.named_parameters(remove_duplicate=False)}
        first = {pid: n for n, pid in reversed(names.items()) if pid in pids}
        self._run_again(self._layers, "", {n: pid for pid, n in first.items()}, why)
        self._hook()

    def run_again_layout(self) -> dict[str, dict[str, str]]:
        """Modules that are run again: their parameters' local names and whole ones, JSON-safe."""
        again = [v for v in self._layers.values() if v.kind == "per_example"]
        return {v.name: {k: self.names[pid] for k, pid in v.ids.items()} for v in again}

    def load_layout(self, layout: dict[str, dict[str, str]]) -> None:
        """Take over what another watch on the same model has found out."""
        for name, names in layout.items():
            ids = {k: self.ids[full] for k, full in names.items()}
            why = "found out before this state was saved"
            self.reasons = {**{full: why for full in names.values()}, **self.reasons}
            module = self.model.get_submodule(name)
            self._layers[name] = Layer(name, module, ids, "per_example")
        self.trial = False
        self._hook()

    def _demote_lost(self) -> bool:
        lost, self._lost = self._lost, []
        for layer, why in lost:
            if layer.name == "":
                raise ValueError(why)
            self._layers.pop(layer.name, None)
            parent, _, last = layer.name.rpartition(".")
            ids = {f"{last}.{k}": v for k, v in layer.ids.items()}
            self._run_again(self._layers, parent, ids, why)
        if lost:
            self._hook()
        return bool(lost)

    def _once(self) -> None:
        """A module that is run again accounts for all uses below it: none is counted twice."""
        for outer in [v for v in self._layers.values() if v.kind == "per_example"]:
            below = f"{outer.name}." if outer.name else ""
            own = set(outer.ids.values())
            for layer in self._layers.values():
                if layer is not outer and layer.name.startswith(below):
                    layer.ids = {k: v for k, v in layer.ids.items() if v not in own}
        self._layers = {k: v for k, v in self._layers.items() if v.ids}

    # ---- hooks ----

    def wait(self, active: bool) -> None:
        """Look at the passes to come, or take all hooks off until some are wanted: they cost time."""
        if active != self.active:
            self.active = active
            self._hook()

    def _hook(self) -> None:
        self.remove()
        self._once()
        if not self.active:
            return
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for layer in self._layers.values():
            seen = {"rule": self._seen, "attention": self._seen_attention}.get(
                layer.kind, self._seen_unknown
            )
            add(layer.module.register_forward_hook(partial(seen, layer), with_kwargs=True))
        add(self.model.register_forward_hook(self._end, with_kwargs=True))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, module: Module, args: Any, kwargs: Any) -> None:
        if module is not self.model:
            return
        self._open = None
        if not self.active or self._busy or not torch.is_grad_enabled():
            return
        size = examples_in(args, kwargs, self.batch_dim)
        self.before()
        self._open = Pass(size, self._rows(size), self.trial)
        self._open.before = [p for p in self.passes if not p.returned]

    def _rows(self, size: int) -> slice:
        count = size if self.examples is None else min(size, self.examples)
        stride = size // count
        # Another set of places in the batch each time; in a shuffled batch any will do.
        start = self.offset * 7919 % (size - stride * (count - 1))
        return slice(start, start + stride * (count - 1) + 1, stride)

    def _end(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is not self.model:
            return
        now, self._open = self._open, None
        if now is None or self._busy:
            return
        self.after()
        if now.trial:
            now.output_nodes = [v.grad_fn for v in _leaves(output) if isinstance(v, torch.Tensor)]
            now.call, outputs = per_example.record(args, kwargs, output)
            self._await(now, now.call, outputs)
        self.passes.append(now)

    @staticmethod
    def _await(now: Pass, call: per_example.Call, outputs: list[Tensor]) -> None:
        def keep(k: int, grad: Tensor) -> None:
            now.came_back(grad)
            old = call.cotangents[k]
            call.cotangents[k] = grad if old is None else old + grad

        for k, out in enumerate(outputs):
            if out.requires_grad:
                out.register_hook(partial(keep, k))

    def _seen(self, layer: Layer, module: Module, args: Any, kwargs: Any, output: Tensor) -> None:
        now = self._open
        if now is None or self._busy or not output.requires_grad:
            return
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        if self._axis(x, now.size, layer) is None:
            self._lost.append((layer, f"{layer.name} gets no row for each example"))
            return
        now.pending.update(layer.ids.values())
        output.register_hook(partial(self._came_back, now, layer, x))

    def _axis(self, x: Tensor, size: int, layer: Layer) -> int | None:
        """Where examples are: 0, 1, or -1 for rows that are examples times positions."""
        flexible = layer.rule in _ANY_SHAPE
        if self.batch_dim == 1 and flexible and x.dim() > 1 and x.shape[1] == size:
            return 1
        if x.dim() > 0 and x.shape[0] == size:
            return 0
        several = self.batch_dim == 0 and flexible and x.dim() > 0 and x.shape[0] % size == 0
        return -1 if several and x.shape[0] else None

    def _came_back(self, now: Pass, layer: Layer, x: Tensor, grad: Tensor) -> None:
        now.came_back(grad)
        if not self._looked:
            # The layer's own gradients are summed up after this: what is there is from before.
            old = self.parameters[next(iter(layer.ids.values()))].grad
            self._looked, self._left_over = True, old is not None and bool(full(old).any())
        axis = self._axis(x, now.size, layer)
        x, grad = (self._select(v, axis, now) for v in (x, grad))
        assert layer.rule is not None
        with torch.no_grad():
            for name, use in layer.rule(layer.module, x, grad).items():
                if name in layer.ids:
                    self._collect(now, layer.ids[name], use)

    @staticmethod
    def _select(x: Tensor, axis: int | None, now: Pass) -> Tensor:
        if axis == 1:
            x = x.transpose(0, 1)
        elif axis == -1:
            x = x.reshape(now.size, -1, *x.shape[1:])
        return full(x[now.rows])

    def _seen_attention(
        self, layer: Layer, module: Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        now = self._open
        if now is None or self._busy or not output[0].requires_grad:
            return
        call = attention.arguments(args, kwargs)
        first = 0 if module.batch_first else 1
        if call["query"].dim() != 3 or call["query"].shape[first] != now.size:
            self._lost.append((layer, f"{layer.name} gets no row for each example"))
            return
        now.pending.update(layer.ids.values())
        rows = now.rows

        def later(grad: Tensor) -> None:
            now.came_back(grad)
            now.deferred.append(
                lambda: self._take(now, layer, attention.uses(module, call, grad, rows))
            )

        output[0].register_hook(later)

    def _seen_unknown(
        self, layer: Layer, module: Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        now = self._open
        if now is None or self._busy:
            return
        call, outputs = per_example.record(args, kwargs, output)
        if not any(out.requires_grad for out in outputs):
            return
        now.pending.update(layer.ids.values())
        self._await(now, call, outputs)
        now.deferred.append(partial(self._again, now, layer, call))

    def _again(self, now: Pass, layer: Layer, call: per_example.Call) -> None:
        try:
            found = per_example.gradients(
                layer.module, list(layer.ids), call, now.rows, now.size, self.batch_dim
            )
        except ValueError as error:
            self._lost.append((layer, f"{layer.name or 'the model'}: {error}"))
            return
        self._take(now, layer, {name: Dense(full(value)) for name, value in found.items()})

    def _take(self, now: Pass, layer: Layer, uses: dict[str, Use]) -> None:
        for name, use in uses.items():
            if name in layer.ids:
                self._collect(now, layer.ids[name], use)

    # ---- from uses to norms ----

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Run the model without hooks looking."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _collect(self, now: Pass, pid: int, use: Use) -> None:
        now.uses.setdefault(pid, []).append(use)
        now.pending[pid] -= 1
        if now.pending[pid] == 0:
            self._finish(now, pid)

    def _finish(self, now: Pass, pid: int) -> None:
        uses, parameter = now.uses.pop(pid), self.parameters[pid]
        if not parameter.requires_grad:  # frozen since
            return
        now.norms[pid] = norms_squared(uses, parameter.shape)
        if now.trial:
            now.sums[pid] = total(uses, parameter.shape)

    def take(self) -> list[Pass] | None:
        """The passes since the last call, worked out; None if the layout had to change."""
        passes = [p for p in self.passes if p.returned]  # others were only looked at by the user
        left_over, self._looked, self._left_over = self._left_over, False, False
        self.passes = []
        if left_over:
            raise ValueError("has gradients from before this step: call zero_grad() after each")
        if any(earlier.returned for p in passes for earlier in p.before):
            raise ValueError(
                "is called twice before one backward: which calls belong to one example is not seen; "
                "wrap both calls in one module"
            )
        with self.unwatched(), torch.no_grad():
            for now in passes:
                for work in now.deferred:
                    work()
                for pid in list(now.uses):  # uses whose gradient never came
                    self._finish(now, pid)
        return None if self._demote_lost() else passes


def examples_in(args: Any, kwargs: Any, batch_dim: int) -> int:
    """Examples in a model's inputs: the first tensor's size along `batch_dim`."""
    for leaf in args if args and isinstance(args[0], torch.Tensor) else _leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and leaf.dim() > batch_dim:
            return int(leaf.shape[batch_dim])
    raise InputError(
        "model", "inputs", f"must have a tensor with a dimension {batch_dim} among its inputs"
    )
