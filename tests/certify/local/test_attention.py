"""Attention as PyTorch's modules compute it: they move the batch, and kernels of whole layers hide what they do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify import lipschitz
from robustres.certify.local.intermediate import Bounds, bounded
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.sets import Region


class Tokens(nn.Module):
    """Four tokens of four pixels through a layer on tokens, and a head."""

    def __init__(self, layer: Callable[[Tensor], Tensor], *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 8), layer, nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(-1, 4, 4))
        answer = self.layer(tokens) if self.batch_first else self.layer(tokens.transpose(0, 1)).transpose(0, 1)
        return self.head((tokens + answer).mean(1))


class SelfAttention(nn.Module):
    def __init__(self, *, batch_first: bool = True, need_weights: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.need_weights = need_weights

    def forward(self, a: Tensor) -> Tensor:
        answer: Tensor = self.attention(a, a, a, need_weights=self.need_weights)[0]
        return answer


def by_hand(module: nn.MultiheadAttention) -> Callable[[Tensor], Tensor]:
    """The same self-attention in plain operations that keep the batch first."""

    def attend(a: Tensor) -> Tensor:
        projected = functional.linear(a, module.in_proj_weight, module.in_proj_bias)
        query, key, value = (part.reshape(-1, 4, 2, 4).transpose(1, 2) for part in projected.chunk(3, dim=2))
        weights = (query @ key.transpose(2, 3) / 2).softmax(dim=3)
        return module.out_proj((weights @ value).transpose(1, 2).reshape(-1, 4, 8))

    return attend


def checked(model: nn.Module, shape: tuple[int, ...]) -> Bounds:
    """The bounds in a small ball; the values at points of it lie within them, and the last are the model's logits."""
    program = local_program(model, shape)
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    region = Region.ball(centre, 0.02, "linf")
    bounds = bounded(program, region)
    moves = 0.02 * (2 * torch.rand(200, *shape, generator=generator, dtype=torch.float64) - 1)
    points = (centre + moves).clamp(0, 1)
    values = program.values(points)
    for low, high, value in zip(bounds.lower, bounds.upper, values, strict=True):
        slack = 1e-12 * (1 + value.abs())
        assert bool(((low - slack <= value) & (value <= high + slack)).all())
    torch.testing.assert_close(values[-1], model.double()(points), rtol=1e-9, atol=1e-9)
    return bounds


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(pytest.param(chosen, marks=pytest.mark.slow) for chosen in ({"need_weights": True}, {"batch_first": False})),
    ],
    ids=str,
)
def test_the_module_has_the_bounds_of_the_same_attention_by_hand(settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(**settings)
    model = Tokens(layer, batch_first=settings.get("batch_first", True)).eval()
    written = Tokens(by_hand(layer.attention)).eval()
    written.embed, written.head = model.embed, model.head
    with torch.no_grad():
        found, expected = (checked(net, (1, 4, 4)) for net in (model, written))
    torch.testing.assert_close(found.lower[-1], expected.lower[-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.upper[-1], expected.upper[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_whole_encoder_layer_is_followed(norm_first: bool) -> None:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    with torch.no_grad():
        bounds = checked(Tokens(layer).eval(), (1, 4, 4))
    assert float((bounds.upper[-1] - bounds.lower[-1]).max()) < 10


@pytest.mark.slow
def test_a_vision_transformer_is_followed_although_its_graph_is_for_one_size_of_the_batch() -> None:
    vision = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = vision.VisionTransformer(8, 4, 1, 2, hidden_dim=8, mlp_dim=16, num_classes=3).eval()
    nn.init.normal_(model.heads[0].weight)
    with torch.no_grad():
        checked(model, (3, 8, 8))


def test_for_all_inputs_the_reason_is_the_product() -> None:
    report = lipschitz(Tokens(SelfAttention()).eval(), (1, 4, 4), refuse="record")
    assert "attention is such a product" in " ".join(map(str, report.refused))
    assert {refusal.path for refusal in report.refused} == {"layer.attention"}
