"""What PyTorch modules compute with, operator by operator, and what is refused."""

from __future__ import annotations

import pytest

import qtool
from qtool.errors import MissingExtraError, ModelError
from qtool.pipeline import load_model

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_graphs import (  # noqa: E402
    Call,
    X,
    assert_agree,
    converted,
    draw,
)

from qtool.frontends import torch as frontend  # noqa: E402

pytestmark = pytest.mark.peers


def assigned(x):
    y = x * 1
    y[:, 1] = 0.5
    y[:, :, 2:] = x[:, :, :2]
    return y


def filled_in_place(x):
    y = x + 1
    y[:, 0].fill_(1.0)
    return F.relu_(y)


FUNCTIONS = {
    "arithmetic": (lambda _, x: (x + 1) * 2 - 0.5 / (x.abs() + 1) + (3 - x) ** 2 + x**3 + (x * x + 1).rsqrt(), X),
    "alpha": (lambda _, x: torch.add(x, x * x, alpha=0.5) - torch.rsub(x, 2), X),
    "comparisons": (lambda _, x: (torch.where((x > 0) & (x < 1) | (x == 0), x, -x), x != 0, (x > 0).sum(-1)), X),
    "masks": (lambda m, x: (x @ x.mT).masked_fill(m.mask[:3, :3], float("-inf")).softmax(-1), X),
    "weights": (lambda m, x: (x @ m.weight, torch.addmm(m.weight[0], x[:, 0], m.weight)), X),
    "reductions": (lambda _, x: (x.mean(1), x.sum((1, 2)), x.amax(-1), x.max(), x.max(1), x.argmin(1), x.std(-1)), X),
    "more_reductions": (lambda _, x: (x.var(1, correction=0), x.norm(dim=-1), (x > 2).any(1), x.logsumexp(1)), X),
    "shapes": (lambda _, x: (x.view(x.shape[0], -1), x.flatten(1), x.unflatten(1, (3, 1)), x.permute(2, 0, 1)), X),
    "places": (lambda _, x: (x[:, 0], x[:, -1, 1:3], x[..., ::2], x[:, [0, 2]], x.flip(1), x.roll(1, 1)), X),
    "repeats": (lambda _, x: (x.unsqueeze(1).expand(-1, 5, -1, -1), x.repeat(1, 2, 1), x.unsqueeze(1).squeeze(1)), X),
    "parts": (lambda _, x: (torch.cat(x.chunk(2, 2)), torch.stack(x.split(2, 1)[:1], 1), *x.unbind(1)), X),
    "clamps": (lambda _, x: (x.clamp(-0.3), x.clamp(max=0.2), F.relu6(x * 9), F.hardtanh(x), x.clamp(-0.1, 0.1)), X),
    "activations": (
        lambda _, x: [
            f(x) for f in (F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.softplus, F.hardswish, F.hardsigmoid, F.glu)
        ],
        X,
    ),
    "composed": (lambda _, x: [f(x) for f in (F.logsigmoid, F.softsign, F.tanhshrink, F.hardshrink, F.normalize)], X),
    "padding": (lambda _, x: [F.pad(x, (1, 2), mode=mode) for mode in ("constant", "reflect", "replicate")], X),
    "new": (lambda _, x: (torch.cat([torch.zeros(x.shape[0], 1, 4), x], 1), x + torch.arange(x.shape[2])), X),
    "sizes": (lambda _, x: x.sum() / x.shape[0] + x.reshape(x.shape[0] * 3, 4)[0, 0] + x.numel(), X),
    "types": (lambda _, x: (x.long().float(), x.int() + 1, (x > 0).float(), x.double(), x.long() // 2, x % 0.7), X),
    "top": (lambda _, x: (x.cumsum(1), x.topk(2), x.tril(), torch.einsum("bij,bkj->bik", x, x)), X),
    "assignment": (lambda _, x: assigned(x), X),
    "in_place": (lambda _, x: filled_in_place(x), X),
    "outputs": (lambda m, x: {"weight": m.weight * 2, "input": x, "twice": (x, None)}, X),
    "attention": (
        lambda m, x: (
            F.scaled_dot_product_attention(x, x, x, is_causal=True),
            F.scaled_dot_product_attention(x, x, x, attn_mask=~m.mask, scale=0.3),
            F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        ),
        (2, 4, 5, 8),
    ),
    "resizing": (
        lambda _, x: (
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, size=(5, 7), mode="bilinear"),
            F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
            F.interpolate(x, scale_factor=2, mode="bicubic"),
        ),
        (2, 3, 4, 5),
    ),
    "pools": (
        lambda _, x: (
            F.max_pool2d(x, 2, ceil_mode=True),
            F.avg_pool2d(x, 2, divisor_override=3),
            F.adaptive_avg_pool2d(x, (None, 2)),
            F.adaptive_max_pool2d(x, 2),
        ),
        (2, 3, 9, 9),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, shape = FUNCTIONS[name]
    module = Call(function).eval()
    graph = converted(module, draw(*shape))
    assert_agree(graph, module, draw(5, *shape[1:], seed=1))


# errors


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (
            Call(lambda _, x: torch.hypot(x, x)),
            nn.Sequential(Call(lambda _, x: torch.svd(x)[1])),
        )

    def forward(self, x):
        return self.second(torch.atan2(self.first(x), x).relu())


def test_all_operators_without_a_converter_are_named_at_once():
    with pytest.raises(ModelError) as info:
        qtool.from_torch(Two(), [draw(*X)])
    message = str(info.value)
    assert "aten.hypot.default in first: it is not known" in message
    assert "aten.atan2.default in the model itself: it is not known" in message
    assert "svd" in message
    assert "in second.0: it is not known" in message
    assert message.endswith("Write these modules with other operators, or leave them out of the exported module.")


def test_states_that_change_are_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return x + self.seen

    with pytest.raises(ModelError, match="changes 'seen' as it runs"):
        qtool.from_torch(Counts(), [draw(*X)])


def test_numbers_that_decide_sizes_or_branches_are_refused():
    with pytest.raises(ModelError, match="selects by a mask"):
        qtool.from_torch(Call(lambda _, x: x[x > 0]), [draw(*X)])
    with pytest.raises(ModelError, match=r"torch\.export cannot export Call"):
        qtool.from_torch(Call(lambda _, x: x if x.sum() > 0 else -x), [draw(*X)])


def test_without_torch(monkeypatch):
    monkeypatch.setattr(frontend, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"qtool\[torch\]"):
        qtool.from_torch(nn.Linear(2, 2), [draw(1, 2)])
    with pytest.raises(MissingExtraError, match=r"qtool\[torch\]"):
        load_model("some.pt2")
