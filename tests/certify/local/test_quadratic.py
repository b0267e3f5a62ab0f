"""Quadratic certificates around an image: secants, exact minima, sampled changes, mutations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.evidence import Evidence, Quadratic
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.program import Program
from robustres.certify.local.quadratic import Sectors, proved_change, searched, sectors
from robustres.certify.local.secants import secants
from robustres.certify.local.sets import Region
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.piecewise_linear import Abs, Clamp, LeakyRelu, Relu
from robustres.certify.maps.smooth import Gelu, Sigmoid
from robustres.threat import Norm
from tests.certify.local.exact import SmallNet, smallest_margin


@pytest.mark.parametrize(
    "function",
    [Relu(), LeakyRelu(0.2), LeakyRelu(-0.5), LeakyRelu(3.0), Abs(), Clamp(-1.0, 1.0), Gelu("none"), Sigmoid()],
)
def test_secants_from_the_centre_hold_every_sampled_slope(function: Activation) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = 3 * torch.randn(3, 1000, generator=generator, dtype=torch.float64)
    lower, centre, upper = ends.sort(dim=0).values
    flat, steep = secants(function, lower, centre, centre, upper)
    for share in torch.linspace(0, 1, 101, dtype=torch.float64).tolist():
        z = lower + share * (upper - lower)
        far = (z - centre).abs() > 1e-6
        slope = (function(z) - function(centre)) / torch.where(far, z - centre, 1.0)
        assert bool((~far | ((flat - 1e-8 <= slope) & (slope <= steep + 1e-8))).all())
    if isinstance(function, Relu):  # closed form of the sector from the centre
        opened = (lower < 0) & (centre > 0)
        assert torch.allclose(flat[opened], (centre / (centre - lower))[opened], rtol=1e-9, atol=1e-9)


Found = tuple[Region, Sectors, FixedPoint, float]


def found_at(made: Program, image: Tensor, norm: Norm, eps: float, row: Tensor) -> Found:
    region = Region.ball(image, eps, norm)
    with torch.no_grad():
        bounds, centre = bounded(made, region), bounded(made, region.with_eps(0.0))
    slopes = sectors(made, bounds, centre)
    found = searched(made, slopes, row, region)
    return region, slopes, found, proved_change(made, slopes, row, region, found)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_proved_change_holds_every_sampled_one_and_is_not_far_above(norm: Norm) -> None:
    net = SmallNet(4, inputs=8, width=16)
    made = local_program(net, (1, 2, 4))
    image, eps = torch.full((1, 1, 2, 4), 0.5, dtype=torch.float64), 0.45 if norm == "l2" else 0.2
    row = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    region, slopes, found, change = found_at(made, image, norm, eps, row)
    assert sum(int((low < high).sum()) for low, high in slopes.values()) > 3
    d = torch.randn(20_000, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = d.sign() if norm == "linf" else d / d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        logits = net(torch.cat([image, image + eps * d]))
    reached = float(((logits[1:] - logits[:1]) @ row[0]).abs().max())
    assert reached <= change <= 8 * reached
    assert change >= found.value * (eps if norm == "l2" else 1.0) * (1 - 1e-3)
    narrow = {node: (low, low + (high - low) / 4) for node, (low, high) in slopes.items()}
    assert proved_change(made, narrow, row, region, found) < change  # so the sectors decide, and their tests matter


@pytest.mark.parametrize("seed", range(3))
def test_quadratics_prove_nothing_where_the_exact_minimum_is_below_zero(seed: int) -> None:
    net = SmallNet(seed)
    x = torch.rand(1, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    eps, label = 0.1, int(net(x).argmax())
    exact = smallest_margin(net, (x - eps).clamp_min(0), (x + eps).clamp_max(1), label)
    with torch.no_grad():
        net.last.bias[label] -= exact + 1e-4
    made = local_program(net, (1, 1, 4))
    quadratics = []
    for place, other in enumerate(sorted({0, 1, 2} - {label})):
        row = torch.zeros(1, 3, dtype=torch.float64)
        row[0, label], row[0, other] = 1.0, -1.0
        quadratics.append(Quadratic((place,), (1.0,), found_at(made, x, "linf", eps, row)[2]))
    assert proved_radius(made, Certificate(x[0], label, "linf", eps, Evidence(quadratics=tuple(quadratics)))) < eps


def test_strange_multipliers_prove_nothing_wrong() -> None:
    net = SmallNet(2)
    made = local_program(net, (1, 1, 4))
    image = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    row = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    region, slopes, found, change = found_at(made, image, "l2", 0.1, row)
    spoilt = {node: values * torch.rand(len(values)) * 3 for node, values in found.multipliers.items()}
    strange = replace(found, multipliers=spoilt)
    assert proved_change(made, slopes, row, region, strange) >= change * (1 - 1e-3)


def test_the_search_uses_them_where_linear_bounds_end() -> None:
    made = local_program(SmallNet(4, inputs=8, width=16), (1, 2, 4))
    x = torch.rand(2, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for found in local_radii(made, x, norm="l2", seconds=6.0):
        assert found.certificate is not None
        linear = Certificate(found.certificate.image, found.prediction, "l2", found.certificate.eps)
        assert found.radius >= proved_radius(made, linear)
