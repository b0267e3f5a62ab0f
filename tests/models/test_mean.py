"""The mean of networks: its logits, its bound, its radii."""

import pytest
import torch

from robustres.certify import certify, lipschitz
from robustres.errors import ModelError
from robustres.models import MeanNet, materialise, preset


def test_the_mean_of_the_logits_has_the_root_mean_square_of_the_bounds() -> None:
    networks = [preset("constrained-tiny", seed=seed).double() for seed in range(2)]
    mean, x = MeanNet(networks), torch.rand(20, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = sum(materialise(network)(x) for network in networks) / 2
        torch.testing.assert_close(mean(x), wanted)
    heads = torch.stack([network.head.weight.detach() for network in networks])
    report = lipschitz(mean, (1, 8, 8), lower_steps=0)
    stacked = torch.cat(tuple(heads), dim=1) / 2
    assert report.upper <= 2**0.5 * float(torch.linalg.matrix_norm(stacked, ord=2)) * (1 + 1e-6)
    # Radii by pairs of rows: margins divided by the root mean square of the pairs' distances.
    logits, label = wanted, wanted.argmax(dim=1)
    distances = (heads[:, label][:, :, None] - heads[:, None]).square().sum(dim=3).mean(dim=0).sqrt()
    margins = logits.gather(1, label[:, None]) - logits
    radii = (margins / distances.clamp_min(1e-12)).masked_fill(margins == 0, torch.inf).amin(dim=1)
    found = certify(mean, x).radius.double()
    torch.testing.assert_close(found, radii, rtol=2e-3, atol=1e-6)  # the stored bodies have a bound slightly below 1


def test_networks_with_different_classes_have_no_mean() -> None:
    with pytest.raises(ModelError, match="at least one"):
        MeanNet([])
