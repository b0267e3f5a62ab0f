"""Matrix polynomials on tori against dense twisted convolutions, written out tap by tap."""

import cmath
import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from robustres.certify.fourier.matrix_polynomial import HermitianPolynomial, polynomial
from robustres.certify.fourier.torus import Torus, coarse_frequencies, embed
from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Sum
from robustres.certify.norms.frequency_norm import gram_bound, narrow_polynomial
from robustres.certify.proof import largest_singular_value
from robustres.certify.proof.largest_singular_value import largest_eigenvalue
from tests.certify.strategies import convolutions, every_torus


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_torus(map_: Convolution, torus: Torus, multiplicity: tuple[int, int]) -> Tensor:
    """The matrix of a convolution of signals with x(n + N) = exp(2 pi i phase) x(n), N = points * multiplicity."""
    sides = [points * r for points, r in zip(torus.points, multiplicity, strict=True)]
    ends = [side // stride for side, stride in zip(sides, map_.stride, strict=True)]
    c_out, per_group, *kernel = map_.weight.shape
    matrix = torch.zeros(c_out, *ends, map_.in_shape[0], *sides, dtype=torch.complex128)
    for place in product(*map(range, ends)):
        for tap in product(*map(range, kernel)):
            axes = zip(place, tap, map_.stride, map_.dilation, map_.padding, strict=True)
            reached = [s * n + d * a - pads[0] for n, a, s, d, pads in axes]
            turns = sum(float(p) * (q // side) for p, q, side in zip(torus.phase, reached, sides, strict=True))
            source = [q % side for q, side in zip(reached, sides, strict=True)]
            for group in range(map_.groups):
                rows = slice(group * c_out // map_.groups, (group + 1) * c_out // map_.groups)
                columns = slice(group * per_group, (group + 1) * per_group)
                taps = map_.weight[rows, :, tap[0], tap[1]] * cmath.exp(2j * math.pi * turns)
                matrix[rows, place[0], place[1], columns, source[0], source[1]] += taps
    return matrix.reshape(c_out * math.prod(ends), -1)


@settings(deadline=None, max_examples=15)
@given(convolutions(circular=True, most_groups=2))
def test_the_largest_value_at_the_frequencies_is_the_norm_on_the_torus(map_: Convolution) -> None:
    embedding = embed(map_)
    if embedding is None or math.prod(embedding.points) * math.prod(embedding.multiplicity) > 200:
        return
    whole, _ = polynomial(map_, embedding.multiplicity)
    factor = narrow_polynomial(map_, embedding)
    gram = HermitianPolynomial.gram(factor)
    exact = float(torch.linalg.svdvals(map_.dense())[0])
    for torus in every_torus(embedding)[::4]:
        truth = float(torch.linalg.svdvals(on_torus(map_, torus, embedding.multiplicity))[0])
        frequencies = coarse_frequencies(torus)
        for found in (whole, factor):
            assert float(torch.linalg.svdvals(found.at(torus, frequencies)).max()) == pytest.approx(truth, rel=1e-12)
        assert float(torch.linalg.eigvalsh(gram.at(torus, frequencies)).max()) == pytest.approx(truth**2, rel=1e-12)
        bound = gram_bound(gram, torus)
        assert exact <= bound
        assert bound == pytest.approx(truth, rel=1e-9)
        assert gram.error >= 0 < factor.error < 1e-9 * (1 + truth)


SMALL = Convolution(normal(3, 3, 3, 3), (3, 5, 4), padding=1)
KINDS: dict[str, LinearMap] = {
    "identity": Identity((3, 5, 4)),
    "channels": Diagonal(normal(3), (3, 5, 4)),
    "scaled": Scaled(-0.3, SMALL),
    "sum": Sum((Identity((3, 5, 4)), SMALL)),
    "chain": Composition([Diagonal(normal(3), (3, 5, 4)), SMALL]),
    "transposed": Transposed(Convolution(normal(3, 2, 3, 3), (2, 10, 10), 2, 1)),
    "transposed, groups": Transposed(Convolution(normal(4, 2, 2, 2), (4, 6, 6), 2, groups=2)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_bounded_on_every_torus_from_above(name: str) -> None:
    map_ = KINDS[name]
    embedding = embed(map_)
    assert embedding is not None
    exact = float(torch.linalg.svdvals(map_.dense())[0])
    factor = narrow_polynomial(map_, embedding)
    for torus in every_torus(embedding)[::2]:
        assert exact <= gram_bound(HermitianPolynomial.gram(factor), torus) <= 1.5 * exact


def test_values_are_differentiable_in_the_weights() -> None:
    weight = normal(2, 2, 3, 3).requires_grad_()
    map_ = Convolution(weight, (2, 5, 5), padding=1)
    embedding = embed(map_)
    assert embedding is not None
    torus = Torus(embedding.points, (Fraction(1, 3), Fraction(1, 3)))  # every frequency, conjugate ones too
    values = polynomial(map_, embedding.multiplicity)[0].at(torus, coarse_frequencies(torus))
    (gradient,) = torch.autograd.grad(values.abs().square().sum(), weight)
    torch.testing.assert_close(gradient, 2 * len(values) * weight.detach(), rtol=1e-9, atol=1e-9)


def test_the_largest_eigenvalue_of_a_batch_is_never_missed() -> None:
    factors = normal(200, 9, 9)
    hermitian = factors @ factors.mT
    exact = float(torch.linalg.eigvalsh(hermitian).max())
    found = largest_eigenvalue(hermitian)
    assert exact <= found <= exact * (1 + 1e-9)
    assert exact + 0.1 <= largest_eigenvalue(hermitian, error=0.1) <= exact + 0.5
    assert largest_eigenvalue(hermitian, at_least=2 * exact) == 2 * exact
    assert largest_eigenvalue(hermitian, stop_above=0.9 * exact) == float("inf")
    assert largest_eigenvalue(torch.zeros(3, 6, 6, dtype=torch.float64)) == 0


def test_the_largest_eigenvalue_of_wide_matrices_is_proved_from_a_ritz_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest_singular_value, "WIDE", 100)
    factors = normal(3, 150, 150)
    hermitian = factors @ factors.mT
    exact = float(torch.linalg.eigvalsh(hermitian).max())
    assert float(largest_singular_value.ritz_values(hermitian, steps=largest_singular_value.WIDE_STEPS).max()) < exact
    assert exact <= largest_eigenvalue(hermitian) <= exact * (1 + 1e-3)
    assert exact + 0.1 <= largest_eigenvalue(hermitian, error=0.1) <= (exact + 0.5) * (1 + 1e-3)


def test_the_channels_of_groups_keep_their_positions_in_sums_with_other_maps() -> None:
    settings_ = {"stride": 2, "padding": 1}
    maps = [Convolution(normal(4, 4 // g, 3, 3, seed=g), (4, 4, 4), groups=g, **settings_) for g in (1, 2)]  # type: ignore[arg-type]
    embedding = embed(Sum(maps))
    assert embedding is not None
    torus = embedding.tori()[0]
    truth = sum(on_torus(map_, torus, embedding.multiplicity) for map_ in maps)
    assert isinstance(truth, Tensor)
    values = polynomial(Sum(maps), embedding.multiplicity)[0].at(torus, coarse_frequencies(torus))
    largest = float(torch.linalg.svdvals(truth)[0])
    assert float(torch.linalg.svdvals(values).max()) == pytest.approx(largest, rel=1e-12)
