"""Modules that state their own bound are followed into their operations; radii that are known are not proved again."""

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import Bound, LocalCertificate, lipschitz
from robustres.certify.local.local_radii import each_local_radius, local_program, local_radii
from robustres.certify.local.sets import Region
from robustres.errors import UnsupportedOperationError
from robustres.models.constraints.activations import MaxMin
from tests.certify.local.test_local_radii import points_in


class Halved(nn.Module):
    """States a bound that says nothing about its values: |x| / 2 + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() / 2 + 1

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return Bound(0.0, 0.5, "its slopes")


class Branching(Halved):
    """Python code that looks at the values."""

    def forward(self, x: Tensor) -> Tensor:
        while float(x.detach().abs().max()) > 1e6:
            x = x / 2
        return x.abs() / 2


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 2, 2), activation, nn.Flatten(), nn.Linear(18, 3))
    return nn.Sequential(*layers).double().eval()


def drawn(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("activation", [MaxMin(), Halved()])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_network_with_stated_bounds_gets_radii_that_no_point_refutes(activation: nn.Module, norm: str) -> None:
    model = network(activation)
    images = drawn(1)
    found = local_radii(local_program(model, (1, 4, 4)), images, norm=norm, seconds=0.2)  # type: ignore[arg-type]
    for image, one in zip(images, found, strict=True):
        assert one.radius > 0
        points = points_in(Region.ball(image[None], one.radius, norm), 2000, 7)  # type: ignore[arg-type]
        assert bool((model(points).argmax(dim=1) == one.prediction).all())


def test_local_certificates_look_inside_modules_that_the_report_only_quotes() -> None:
    model = network(MaxMin())
    images = drawn(2)
    report = lipschitz(model, (1, 4, 4))
    local = LocalCertificate("l2", 0.2, report)(model, images).radius
    assert bool((local > 0).all())


def test_a_stated_module_that_cannot_be_a_graph_is_refused() -> None:
    model = network(Branching())
    assert lipschitz(model, (1, 4, 4)).upper is not None  # the statement suffices here
    with pytest.raises(UnsupportedOperationError, match="looks at the values of the input"):
        local_program(model, (1, 4, 4))


def test_only_radii_above_known_ones_are_looked_for() -> None:
    model = network(MaxMin())
    images = drawn(2)
    made = local_program(model, (1, 4, 4))
    free = [one.radius for one in each_local_radius(made, images, norm="l2", seconds=0.2)]
    known = torch.tensor([free[0], 0.5 * free[1]], dtype=torch.float64)
    above = torch.tensor([1.01 * free[0], torch.inf], dtype=torch.float64)
    first, second = each_local_radius(made, images, norm="l2", seconds=0.2, known=known, above=above)
    assert (first.radius, first.certificate, first.seconds) == (0.0, None, (0.0, 0.0))
    assert second.radius > known[1]
    for aimed in each_local_radius(made, images, norm="l2", seconds=0.2, known=known, aims=[0.3 * free[1]]):
        assert aimed.certificate is None  # it is known already


def test_a_certificate_never_returns_less_than_what_is_proved_otherwise() -> None:
    model = network(MaxMin())
    images = drawn(2)
    certificate = LocalCertificate("l2", 0.2)
    free = certificate(model, images).radius.tolist()
    indices = torch.tensor([5, 6])
    beside = certificate.beside({}, {5: (100.0, "another"), 6: (0.01 * free[1], "another")})
    found = beside(model, images, indices=indices)
    assert found.radius[0] == 100
    assert found.radius[1] > 0.01 * free[1]
    assert found.source[0] == "another"
    assert found.source[1].startswith("local")


def test_the_larger_and_the_smaller_of_a_pair_share_one_activation() -> None:
    model = network(MaxMin())
    made = local_program(model, (1, 4, 4))
    assert len(made.activations) == 1
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(made.values(x)[-1], model(x), atol=1e-12)
