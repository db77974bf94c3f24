"""Ghost norms against a loop over examples, for every kind of layer that has a rule, and the others.

float64 throughout: the norms are the same numbers, so 1e-10 is rounding and nothing else passes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchwell.training import Probe

B = 6
Case = tuple[nn.Module, tuple[Any, ...]]


class Apply(nn.Module):
    """A model whose forward is any function of the modules given."""

    def __init__(self, forward: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def tokens(length: int = 5, vocabulary: int = 11) -> torch.Tensor:
    return torch.randint(0, vocabulary, (B, length))


def one(*layers: nn.Module, shape: tuple[int, ...]) -> Case:
    return nn.Sequential(*layers), (torch.randn(B, *shape),)


def tied() -> Case:
    embed, head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
    head.weight = embed.weight
    return Apply(lambda s, t: s.head(torch.tanh(s.embed(t))), embed=embed, head=head), (tokens(),)


def frozen() -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))
    model[2].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model, (torch.randn(B, 4),)


def attention(**options: Any) -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)
    return layer, (torch.randn(B, 5, 8),)


def cross_attention(**options: Any) -> Case:
    return (
        Apply(lambda s, x, y: s.a(x, y, y)[0], a=nn.MultiheadAttention(8, 2, batch_first=True, **options)),
        (torch.randn(B, 3, 8), torch.randn(B, 5, 8)),
    )  # fmt: skip


def masked_attention() -> Case:
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.zeros(B, 5, dtype=torch.bool)
    padding[:3, 4] = True

    def forward(s: Any, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        pad = pad.double().masked_fill(pad, float("-inf"))  # both masks of one kind, as torch asks
        return s.a(x, x, x, key_padding_mask=pad, attn_mask=causal.double(), need_weights=False)[0]

    return Apply(forward, a=nn.MultiheadAttention(8, 2, batch_first=True)), (
        torch.randn(B, 5, 8),
        padding,
    )


def attention_whose_weights_count() -> Case:
    return (
        Apply(lambda s, x: sum(s.a(x, x, x)).flatten(1), a=nn.MultiheadAttention(5, 1, batch_first=True)),
        (torch.randn(B, 5, 5),),
    )  # fmt: skip


def called_twice() -> Case:
    return Apply(lambda s, x: s.a(torch.tanh(s.a(x))), a=nn.Linear(4, 4)), (torch.randn(B, 4),)


def batch_norm() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    model[1].running_mean.normal_()
    model[1].eval()
    return model, (torch.randn(B, 2, 5, 5),)


def positions(length: int) -> Case:
    def forward(s: Any, t: torch.Tensor) -> torch.Tensor:
        return s.head(torch.tanh(s.embed(t) + s.place(torch.arange(t.shape[1]))))

    parts = {
        "embed": nn.Embedding(11, 4),
        "place": nn.Embedding(length, 4),
        "head": nn.Linear(4, 3),
    }
    return Apply(forward, **parts), (tokens(length),)


def raw_parameter() -> Case:
    model = Apply(lambda s, x: s.a(x) * s.scale, a=nn.Linear(4, 3))
    model.scale = nn.Parameter(torch.randn(3))
    return model, (torch.randn(B, 4),)


def scalar_parameter() -> Case:
    model = Apply(lambda s, x: s.a(x) * s.scale.exp(), a=nn.Linear(4, 3))
    model.scale = nn.Parameter(torch.tensor(0.3))
    return model, (torch.randn(B, 4),)


def raw_and_ruled() -> Case:
    """A weight used by its layer and by hand."""
    return Apply(lambda s, x: s.a(torch.tanh(s.a(x))) @ s.a.weight, a=nn.Linear(4, 4)), (
        torch.randn(B, 4),
    )


def flattened() -> Case:
    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        return s.b(torch.tanh(s.a(x.reshape(-1, 4)))).reshape(x.shape[0], -1)

    return Apply(forward, a=nn.Linear(4, 3), b=nn.Linear(3, 2)), (torch.randn(B, 5, 4),)


def flattened_the_other_way() -> Case:
    """Rows are positions times examples: only running single examples can tell."""

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        rows = torch.tanh(s.a(x.transpose(0, 1).reshape(-1, 4)))
        return rows.reshape(5, x.shape[0], 3).transpose(0, 1).flatten(1)

    return Apply(forward, a=nn.Linear(4, 3)), (torch.randn(B, 5, 4),)


COVERED: dict[str, Callable[[], Case]] = {
    "linear": lambda: one(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3), shape=(4,)),
    "linear without bias": lambda: one(nn.Linear(4, 3, bias=False), shape=(4,)),
    "long sequence": lambda: one(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), shape=(30, 3)),
    "short sequence": lambda: one(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), shape=(2, 9)),
    "two sequence dimensions": lambda: one(nn.Linear(3, 4), shape=(2, 5, 3)),
    "conv1d": lambda: one(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), shape=(2, 11)),
    "conv2d": lambda: one(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1), shape=(2, 7, 6)),
    "conv2d in place": lambda: one(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2), shape=(2, 6, 6)
    ),
    "grouped conv2d": lambda: one(nn.Conv2d(4, 6, 3, groups=2), shape=(4, 5, 5)),
    "conv2d, same, circular": lambda: one(
        nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), shape=(2, 5, 5)
    ),
    "embedding": lambda: (
        Apply(lambda s, t: torch.tanh(s.e(t)), e=nn.Embedding(11, 3, padding_idx=2)),
        (tokens(),),
    ),
    "sparse embedding": lambda: (
        Apply(lambda s, t: torch.tanh(s.e(t)), e=nn.Embedding(11, 3, sparse=True)),
        (tokens(),),
    ),
    "layer norm": lambda: one(nn.Linear(4, 6), nn.LayerNorm(6), shape=(3, 4)),
    "layer norm of two dimensions": lambda: one(nn.LayerNorm((3, 4), bias=False), shape=(2, 3, 4)),
    "rms norm": lambda: one(nn.RMSNorm(4, eps=1e-3), shape=(3, 4)),
    "group norm": lambda: one(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), shape=(2, 5, 5)),
    "group norm of vectors": lambda: one(nn.GroupNorm(2, 4), shape=(4,)),
    "batch norm in eval mode": batch_norm,
    "attention": attention,
    "attention, pre-norm, without bias": lambda: attention(norm_first=True, bias=False),
    "attention, masks": masked_attention,
    "cross attention": cross_attention,
    "tied embedding": tied,
    "frozen": frozen,
    "called twice": called_twice,
    "flattened": flattened,
}
RUN_AGAIN: dict[str, Callable[[], Case]] = {
    "positions": lambda: positions(5),
    "as many positions as examples": lambda: positions(B),
    "raw parameter": raw_parameter,
    "scalar parameter": scalar_parameter,
    "raw and ruled": raw_and_ruled,
    "flattened the other way": flattened_the_other_way,
    "attention whose weights count": attention_whose_weights_count,
    "attention with other widths": lambda: cross_attention(kdim=8, vdim=8, add_bias_kv=True),
    "weight norm": lambda: one(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), shape=(4,)),
    "instance norm": lambda: one(
        nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True), nn.Tanh(), shape=(2, 5, 5)
    ),
    "bilinear": lambda: (
        Apply(lambda s, x: s.a(x, x), a=nn.Bilinear(3, 3, 2)),
        (torch.randn(B, 3),),
    ),
    "conv3d": lambda: one(nn.Conv3d(1, 2, 2), shape=(1, 3, 3, 3)),
    "lstm": lambda: (
        Apply(lambda s, x: s.r(x)[0], r=nn.LSTM(3, 4, batch_first=True)),
        (torch.randn(B, 4, 3),),
    ),
}


def mean_loss(model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
    return F.softplus(model(*inputs).flatten(1)).square().mean(1).mean()


Precision = Callable[[], AbstractContextManager[Any]]


def by_loop(
    model: nn.Module, inputs: tuple[Any, ...], precision: Precision = nullcontext
) -> torch.Tensor:
    """|g_i|^2 of each example, run by itself."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(B):
        with precision():
            loss = mean_loss(model, tuple(x[i : i + 1] for x in inputs))
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        rows.append(sum(g.to_dense().double().square().sum() for g in gradients if g is not None))
    return torch.stack(rows)


def by_probe(
    model: nn.Module, inputs: tuple[Any, ...], precision: Precision = nullcontext, **options: Any
) -> tuple[Any, Probe]:
    probe = Probe(model, examples=None, **options)
    for _ in range(4):  # the first steps may find out what the hooks do not see
        model.zero_grad()
        with precision():
            loss = mean_loss(model, inputs)
        loss.backward()
        if probe.step(loss) is not None and probe.steps > 1:
            break
    probe.close()
    return probe.example_norms_squared, probe


@pytest.mark.parametrize("name", [*COVERED, *RUN_AGAIN])
def test_norms_are_those_of_a_loop_over_examples(name: str) -> None:
    model, inputs = {**COVERED, **RUN_AGAIN}[name]()
    model = model.double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    found, probe = by_probe(model, inputs)
    torch.testing.assert_close(found, by_loop(model, inputs), rtol=1e-10, atol=0)
    assert bool(probe.fallbacks) == (name in RUN_AGAIN), probe.fallbacks


@pytest.mark.parametrize("name", ["linear", "conv2d", "attention", "tied embedding", "layer norm"])
def test_norms_in_float32_are_exact_to_1e_5(name: str) -> None:
    model, inputs = COVERED[name]()
    found, _ = by_probe(model, inputs)
    torch.testing.assert_close(found, by_loop(model, inputs).double(), rtol=1e-5, atol=0)


def half(dtype: torch.dtype) -> Precision:
    return lambda: torch.autocast("cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    ["linear", "conv2d", "attention", "tied embedding", "layer norm", "group norm", "conv3d"],
)
def test_autocast_is_no_gradient_of_another_kind(name: str, dtype: torch.dtype) -> None:
    """Norms to the rounding of the type, and no layer run again for it that has a rule."""
    model, inputs = {**COVERED, **RUN_AGAIN}[name]()
    found, probe = by_probe(model, inputs, half(dtype))
    exact = by_loop(model, inputs, half(dtype))
    torch.testing.assert_close(found, exact, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert bool(probe.fallbacks) == (name in RUN_AGAIN), probe.fallbacks
    plain, _ = by_probe(model, inputs)
    assert not torch.allclose(found, plain, rtol=1e-5)  # control: it was not float32


@pytest.mark.parametrize("name", ["linear", "attention", "batch norm in eval mode", "conv3d"])
def test_a_model_in_bfloat16(name: str) -> None:
    model, inputs = {**COVERED, **RUN_AGAIN}[name]()
    model, inputs = model.bfloat16(), tuple(x.bfloat16() for x in inputs)
    found, probe = by_probe(model, inputs)
    torch.testing.assert_close(found, by_loop(model, inputs), rtol=0.03, atol=0)
    assert bool(probe.fallbacks) == (name in RUN_AGAIN), probe.fallbacks


def test_batch_in_the_second_dimension() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0).double()
    x = torch.randn(5, B, 8, dtype=torch.float64)

    exact = by_loop(_around(model), (x.transpose(0, 1),))
    probe = Probe(model, examples=None, batch_dim=1)
    loss = F.softplus(model(x).transpose(0, 1).flatten(1)).square().mean()
    loss.backward()
    probe.step(loss)
    torch.testing.assert_close(probe.example_norms_squared, exact, rtol=1e-10, atol=0)


def _around(model: nn.Module) -> nn.Module:
    return Apply(lambda s, x: s.inner(x.transpose(0, 1)).transpose(0, 1), inner=model)


def test_a_tied_weight_without_its_cross_terms_would_be_wrong() -> None:
    """Negative control: the sum of both uses' squares is off by far more than the tolerance."""
    from batchwell.training.norms import Outer, norms_squared

    shape, left = (11, 4), torch.randn(B, 5, 11)
    uses = [Outer(tokens(), torch.randn(B, 5, 4)), Outer(left, torch.randn(B, 5, 4))]
    apart = sum(norms_squared([use], shape) for use in uses)
    assert ((norms_squared(uses, shape) - apart).abs() > 1e-2 * apart).all()
