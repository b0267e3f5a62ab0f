"""Complete networks of every block: the certified bound never exceeds the guarantee of the parametrisation."""

from dataclasses import replace

import pytest
import torch

from robustres.certify import certify, lipschitz
from robustres.errors import UnsupportedOperationError
from robustres.models import BLOCKS, PRESETS, build, materialise, residual_net
from robustres.models.blocks.by_name import ORDINARY
from robustres.models.networks.presets import FAMILIES

SHAPE = (1, 5, 4)


@pytest.mark.parametrize("block", sorted(BLOCKS.keys() - ORDINARY))
def test_the_certifier_confirms_the_budget_of_a_constrained_network(block: str) -> None:
    network = residual_net(block=block, depth=2, width=4, image_shape=SHAPE, classes=3)
    network.train()
    for _ in range(3):
        network(torch.rand(2, *SHAPE)).square().mean().backward()
    plain = materialise(network)
    report = lipschitz(plain, SHAPE)
    head = float(torch.linalg.matrix_norm(plain.head.weight.detach().double(), ord=2))  # type: ignore[union-attr, operator]
    assert report.lower <= report.upper <= network.budget * head * 2**0.5 * (1 + 1e-9)
    images = torch.rand(3, *SHAPE)
    assert (certify(plain, images, report=report).radius > 0).all()


def test_a_highway_network_is_refused_by_name() -> None:
    network = residual_net(block="highway", depth=1, width=4, image_shape=SHAPE, classes=3).eval()
    with pytest.raises(UnsupportedOperationError, match=r"blocks\.0"):
        lipschitz(network, SHAPE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "large" in name else ()) for name in sorted(FAMILIES)]
)
def test_every_size_of_every_family_keeps_its_budget_at_full_width(name: str) -> None:
    """One block of each kind, on images whose features are 2 x 2; the certifier runs with little effort here."""
    tiny = FAMILIES[name].image_shape[0] == 1
    small = {} if tiny else {"image_shape": (3, 4, 4), "pool": 2}
    plain = materialise(build(replace(FAMILIES[name], depth=1, **small)))
    features = (FAMILIES[name].width, *((1, 1) if tiny else (2, 2)))
    said = plain.blocks[0].stated_bound(features)  # type: ignore[index, union-attr, operator]
    assert 0.3 < said.upper <= 1
    rows = lipschitz(plain, (1, 8, 8) if tiny else (3, 4, 4), effort=0.1, lower_steps=0).blocks
    assert all(row.upper <= 1 for row in rows if not row.is_residual and row.kind != "head")
    assert all(said.lower <= row.upper for row in rows if row.is_residual)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"plain-tiny", "residual-tiny"}))
def test_constrained_presets_are_certified_as_they_are(name: str) -> None:
    network = build(PRESETS[name])
    plain = materialise(network)
    found = certify(plain, torch.rand(2, *PRESETS[name].image_shape))
    assert (found.radius > 0).all()


@pytest.mark.slow
def test_the_families_come_in_three_sizes() -> None:
    sizes = {
        name: sum(parameter.numel() for parameter in build(architecture).parameters())
        for name, architecture in FAMILIES.items()
    }
    for family in ("liresnet", "cpl", "sll", "joint"):
        tiny, small, large = (sizes[f"{family}-{size}"] for size in ("tiny", "small", "large"))
        assert tiny < 0.08e6
        assert 0.7e6 < small < 0.9e6
        assert large > 3e6
