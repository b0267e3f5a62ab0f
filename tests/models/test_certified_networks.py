"""Whole networks of every block, read by the certifier: never above what the parametrisations promise."""

import pytest
import torch

from robustres.certify import certify, lipschitz
from robustres.errors import UnsupportedOperationError
from robustres.models import BLOCKS, materialise, residual_net
from robustres.models.blocks import ORDINARY

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
