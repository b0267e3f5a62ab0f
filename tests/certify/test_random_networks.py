"""Laws that hold for any network: no slope exceeds its bound, no ball that is certified holds another answer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import LipschitzReport, certify, lipschitz
from robustres.certify.graph.capture import BATCH
from tests.certify.random_networks import random_network

# Without a rule on purpose; each is named where it is refused.
REFUSED = ("empty tensor", "holds no pixel", "adaptive_max_pool", "softsign", "div", "log_softmax")
CHECKED = 24  # a multiple of the captured batch: not every graph runs on others


def steepest_pieces(report: LipschitzReport, x: Tensor) -> Tensor:
    """(B, classes, inputs): the Jacobian at every input, of the captured graph, which has no changes in place."""
    assert report.analysis is not None
    captured = report.analysis.captured
    run = lambda v: captured.run({captured.source: v}, captured.output).sum(0)  # noqa: E731
    parts = [torch.autograd.functional.jacobian(run, part) for part in x.split(len(x) if captured.rebatches else BATCH)]
    return torch.cat([part.flatten(2).transpose(0, 1) for part in parts]).detach().nan_to_num(0, 0, 0)


def points(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Inputs of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.linspace(-2, 2, CHECKED, dtype=torch.float64)
    return sizes.reshape(-1, 1, 1, 1) * torch.randn(CHECKED, *shape, dtype=torch.float64, generator=generator)


def check_slopes(report: LipschitzReport, x: Tensor) -> None:
    """Jacobians lie below the bounds in l2 and linf, those of pairs of classes too; torch's are exact to 3e-8."""
    jacobians = steepest_pieces(report, x)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= report.l2_upper * (1 + 1e-7)
    assert float(jacobians.abs().sum(2).max()) <= report.linf_upper * (1 + 1e-7)
    whole = report.analysis.whole if report.analysis is not None else None
    if whole is not None:
        slopes = (jacobians[:, :, None] - jacobians[:, None]).norm(dim=3).amax(0)
        assert bool((slopes <= whole.pairs * (1 + 1e-7)).all())


def check_balls(model: nn.Module, report: LipschitzReport, x: Tensor, seed: int) -> None:
    """Nothing inside a certified ball is answered otherwise: random directions, and along the gradients of margins."""
    generator = torch.Generator().manual_seed(seed)
    for norm in ("l2", "linf"):
        for choice in ("lipschitz", "best"):
            found = certify(model, x, norm=norm, report=report, certificate=choice)
            radius = found.radius[:, None].clamp_max(1e30)
            jacobians = steepest_pieces(report, x)
            rows = torch.arange(len(x))
            for other in range(jacobians.shape[1]):
                gradient = jacobians[:, other] - jacobians[rows, found.prediction]
                noise = torch.randn(gradient.shape, dtype=torch.float64, generator=generator)
                for direction in (gradient, noise):
                    step = direction.sign() if norm == "linf" else direction / direction.norm(dim=1, keepdim=True)
                    moved = x + (radius * step.nan_to_num(0, 0, 0)).reshape(x.shape)
                    with torch.no_grad():
                        answers = model(moved.clone())
                    inside = (found.radius > 0) & torch.isfinite(answers).all(1)
                    assert bool((answers.argmax(1) == found.prediction)[inside].all())


def check_network(seed: int) -> str:
    """Every law for the network of one seed; what became of it."""
    model, shape = random_network(seed)
    x = points(seed, shape)
    report = lipschitz(model, shape, effort=0.02, seconds=0.05, refuse="record")
    assert all(any(name in refusal.operation for name in REFUSED) for refusal in report.refused), report.refused
    if report.refused:
        return "refused"
    wide = model.double()
    with torch.no_grad():
        finite = bool(torch.isfinite(wide(x.clone())).all())
    if not finite:
        return "overflows"
    check_slopes(report, x)
    check_balls(wide, report, x, seed)
    return "vacuous" if math.isinf(report.upper) else "bounded"


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(deadline=None, max_examples=5, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_no_random_network_exceeds_its_bounds_or_its_radii(seed: int) -> None:
    check_network(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch, about even kernels
def test_no_random_network_of_many_exceeds_its_bounds_or_its_radii() -> None:
    outcomes = [check_network(seed) for seed in range(400)]
    assert outcomes.count("bounded") > 200
