"""Bounds of whole networks whose output is an image: against Jacobians, and against a multiplier for every neuron."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.certify.blocks.joint_search import image_value
from robustres.certify.blocks.network_forms import REPAIRS, plain_form, proof_within
from robustres.certify.graph.image_output import image_behind
from robustres.models.constraints.activations import MaxMin
from tests.certify.test_torus_network import attained, simplified


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Beside(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.wide(x)), self.narrow(x)], dim=1)


def chain(channels: int, convolutions: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS = {
    "chain": lambda: chain(2, 3),
    "residual": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), MaxMin(), Residual(4), nn.ReLU(), Residual(4)),
    "stride": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.3), nn.Conv2d(4, 2, 3, padding=1)
    ),
    "upsampling": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2, stride=2)
    ),
    "concatenation": lambda: nn.Sequential(Beside(2), nn.ReLU(), nn.Conv2d(4, 2, 3)),
    "pooling": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)),
}
QUICK = ("chain", "stride", "upsampling")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_the_bound_lies_above_jacobians_and_what_a_multiplier_per_neuron_proves(name: str) -> None:
    torch.manual_seed(1)
    model = cast(nn.Module, NETWORKS[name]()).eval()
    output = simplified(model, 2, 6, 6)
    bound, reached = image_value(output, effort=1.0, limit=float("inf"))
    form = plain_form(output.ordered())
    by_neuron, _ = proof_within(form, form.search(steps=200, tolerance=1e-5), 10.0, repairs=REPAIRS)
    assert attained(nn.Sequential(model.double(), nn.Flatten()), 2, 6, 6) <= bound
    assert by_neuron * (1 - 1e-3) <= bound <= 1.01 * reached
    assert bound < 1.4 * by_neuron


def test_lipschitz_eliminates_a_network_with_large_images_as_output() -> None:
    model = chain(4, 3).eval()
    report = lipschitz(model, (4, 40, 40), whole_effort=0.4)
    assert report.method == "layers eliminated"
    assert report.whole.shares == "channel"
    assert not report.whole.skipped
    assert report.lower <= report.upper < 0.95 * lipschitz(model, (4, 40, 40), whole_effort=0.0, joint=False).upper
    assert lipschitz(nn.Sequential(model, nn.Flatten()), (4, 40, 40), whole_effort=0.4).upper == report.upper


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Inside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1, 1:-1]


REARRANGED = {
    "flattened": [nn.Flatten()],
    "flattened before an activation": [nn.Flatten(), nn.ReLU()],
    "channels last": [ChannelsLast()],
    "columns": [nn.ReLU(), ChannelsLast(), nn.ReLU(), nn.Flatten(1, 2)],
    "finer": [nn.PixelShuffle(2)],
}


@pytest.mark.parametrize("name", REARRANGED)
def test_an_output_that_is_an_image_in_another_arrangement_is_that_image(name: str) -> None:
    output = simplified(nn.Sequential(chain(4, 2), *REARRANGED[name]).eval(), 4, 6, 6)
    image = image_behind(output)
    assert image is not None
    assert image.shape == (4, 6, 6)
    assert image_behind(image) is image
    bound, _ = image_value(image, effort=0.2, limit=float("inf"))
    assert attained(nn.Sequential(chain(4, 2), *REARRANGED[name], nn.Flatten()).double(), 4, 6, 6) <= bound


@pytest.mark.parametrize("last", [nn.Upsample(scale_factor=2), Inside()])
def test_copied_and_dropped_coordinates_are_no_rearrangement(last: nn.Module) -> None:
    output = simplified(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), last).eval(), 2, 6, 6)
    assert image_behind(output) is output


def test_a_vector_is_no_image() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8))
    assert image_behind(simplified(model.eval(), 2, 6, 6)) is None
