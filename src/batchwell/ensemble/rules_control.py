"""Rules for programs inside programs: calls, branches, loops of known length."""

from __future__ import annotations

from typing import Any

import numpy as np

from .interpreter import Nodes, Unsupported, each, open_jaxpr, rule, run, subjaxprs
from .ir import Graph, Node

MAX_TURNS = 8_000  # of a loop that is unrolled
CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
         "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")  # fmt: skip


@rule(*CALLS)
def _inlined(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    sub = subjaxprs(e.params)
    if not sub:
        raise Unsupported(e.primitive.name)
    jaxpr, consts = open_jaxpr(sub[0])
    return run(g, jaxpr, consts, a)


@rule("cond")
def _cond(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    which, args = a[0].item(), a[1:]
    branches = [open_jaxpr(b) for b in e.params["branches"]]
    if not isinstance(which, Node):
        k = int(np.clip(float(which), 0, len(branches) - 1))
        return run(g, *branches[k], args)
    outs = run(g, *branches[0], args)
    for k, branch in enumerate(branches[1:], 1):
        other = run(g, *branch, args)
        test = g.compare("ge", g.as_real(which), float(k))
        outs = [
            each(lambda y, n, t=test: g.select(t, y, n), y, n)
            for y, n in zip(other, outs, strict=True)
        ]
    return outs


@rule("scan")
def _scan(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    p = e.params
    fixed, carried = a[: p["num_consts"]], a[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    columns = a[p["num_consts"] + p["num_carry"] :]
    jaxpr, consts = open_jaxpr(p["jaxpr"])
    order = range(p["length"])
    stacks: list[list[Nodes]] = []
    for k in reversed(order) if p["reverse"] else order:
        outs = run(
            g, jaxpr, consts, [*fixed, *carried, *(np.asarray(c[k], object) for c in columns)]
        )
        carried, rest = outs[: p["num_carry"]], outs[p["num_carry"] :]
        stacks.append(rest)
    if p["reverse"]:
        stacks.reverse()
    empty = [np.empty(v.aval.shape, object) for v in e.outvars[p["num_carry"] :]]
    stacked = [np.stack(column) for column in zip(*stacks, strict=True)] if stacks else empty
    return [*carried, *stacked]


@rule("while")
def _while(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    p = e.params
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test_args, body_args, state = a[:n_test], a[n_test : n_test + n_body], a[n_test + n_body :]
    test, body = open_jaxpr(p["cond_jaxpr"]), open_jaxpr(p["body_jaxpr"])
    for _ in range(MAX_TURNS):
        go = run(g, *test, [*test_args, *state])[0].item()
        if isinstance(go, Node):
            raise Unsupported("while", "a loop whose length depends on values has no fused form")
        if not go:
            return state
        state = run(g, *body, [*body_args, *state])
    raise Unsupported("while", "a loop of more steps than can be unrolled")
