"""Bounds on norms against dense singular values, and known failures of certificates."""

import math

import pytest
import torch
from hypothesis import given, settings

from robustres.certify.fourier.matrix_polynomial import HermitianPolynomial
from robustres.certify.fourier.torus import embed
from robustres.certify.maps.convolution import Convolution, Transposed, average_pool, separable
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Scaled, Sum
from robustres.certify.norms.frequency_norm import frequency_bound, gram_bound, narrow_polynomial
from robustres.certify.norms.spectral_norm import product_bound, spectral_norm
from robustres.certify.norms.structural_norm import is_small
from robustres.certify.proof.bound import Bound, Guarantee
from robustres.errors import InputError
from tests.certify.strategies import convolutions, every_torus


def truth(map_: LinearMap) -> float:
    return float(torch.linalg.svdvals(map_.dense())[0])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(convolutions(circular=True))
def test_the_automatic_interval_holds_the_true_norm(map_: Convolution) -> None:
    bound = spectral_norm(map_)
    assert bound.lower <= truth(map_) * (1 + 1e-12)
    assert truth(map_) <= bound.upper * (1 + 1e-14)
    assert str(bound.guarantee) == "deterministic"


@settings(deadline=None, max_examples=30)
@given(convolutions(circular=True))
def test_products_of_norms_bound_the_true_norm(map_: Convolution) -> None:
    assert truth(map_) <= product_bound(map_) * (1 + 1e-14)


def test_an_ordinary_convolution_is_bounded_within_two_percent() -> None:
    map_ = Convolution(normal(6, 6, 3, 3), (6, 12, 12), padding=1)
    assert truth(map_) <= spectral_norm(map_, method="frequency").upper <= 1.02 * truth(map_)


def test_a_strided_convolution_is_bounded_through_its_aliases() -> None:
    map_ = Convolution(normal(8, 6, 3, 3), (6, 12, 12), 2, 1)
    assert truth(map_) <= spectral_norm(map_, method="frequency").upper <= 1.02 * truth(map_)


def test_circular_padding_is_exact() -> None:
    map_ = Convolution(normal(4, 3, 3, 3), (3, 8, 6), 2, 1, circular=True)
    assert spectral_norm(map_, method="frequency").upper == pytest.approx(truth(map_), rel=1e-9)


KNOWN = {
    "grouped": Convolution(normal(6, 2, 3, 3), (6, 7, 7), padding=1, groups=3),
    "depthwise": Convolution(normal(4, 1, 3, 3), (4, 9, 9), padding=1, groups=4),
    "unequal padding": Convolution(normal(3, 3, 3, 4), (3, 6, 7), 2, ((0, 1), (3, 0))),
    "stride larger than the kernel": Convolution(normal(3, 3, 2, 2), (3, 11, 10), 4, 1),
    "one pixel": Convolution(normal(3, 3, 3, 3), (3, 1, 1), padding=1),
    "image smaller than the kernel": Convolution(normal(2, 2, 7, 7), (2, 3, 2), padding=3),
    "a row of pixels": Convolution(normal(2, 2, 3, 3), (2, 1, 9), 1, 1),
    "even kernel": Convolution(normal(3, 2, 4, 2), (2, 8, 8), padding=2),
    "transposed": Transposed(Convolution(normal(3, 2, 3, 3), (2, 10, 10), 2, 1)),
    "average pooling": average_pool((2, 8, 8), 3, 2, 1),
    "uneven average pooling": separable(normal(5, 9), normal(5, 8), 2),
    "shortcut plus linear branch": Sum(
        (Identity((3, 6, 6)), Scaled(-0.3, Convolution(normal(3, 3, 3, 3), (3, 6, 6), padding=1)))
    ),
    "two cropped convolutions": Composition(
        (Convolution(normal(3, 2, 3, 3), (2, 6, 6), padding=1), Convolution(normal(2, 3, 3, 3), (3, 6, 6), padding=1))
    ),
    "pooled shortcut": Composition((average_pool((2, 8, 8), 2), Convolution(normal(4, 2, 1, 1), (2, 4, 4)))),
    "scaled after": Composition(
        (Convolution(normal(3, 2, 3, 3), (2, 6, 6), 2, 1), Diagonal(torch.tensor([1.0, -5.0, 0.0]), (3, 3, 3)))
    ),
    "down and up": Composition(
        (Convolution(normal(3, 2, 2, 2), (2, 6, 6), 2), Transposed(Convolution(normal(3, 2, 2, 2), (2, 6, 6), 2)))
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_hard_cases_are_bounded_by_every_method(name: str) -> None:
    map_ = KNOWN[name]
    exact = truth(map_)
    assert exact <= spectral_norm(map_, method="auto").upper * (1 + 1e-14)
    assert exact <= product_bound(map_) * (1 + 1e-14)
    embedding = embed(map_)
    if embedding is not None:
        gram = HermitianPolynomial.gram(narrow_polynomial(map_, embedding))
        for torus in every_torus(embedding):
            assert exact <= gram_bound(gram, torus) * (1 + 1e-14)


def test_a_cropped_composition_is_not_shift_invariant() -> None:
    assert frequency_bound(KNOWN["two cropped convolutions"]) is None
    inner = Convolution(normal(3, 2, 3, 3), (2, 6, 6), padding=1)
    pointwise = Convolution(normal(2, 3, 1, 1), (3, 6, 6))
    assert frequency_bound(pointwise @ inner) is not None
    strided = Composition(
        (Convolution(normal(2, 2, 1, 1), (2, 6, 6)), Convolution(normal(2, 2, 3, 3), (2, 6, 6), 2, 1))
    )
    assert frequency_bound(strided) is not None


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_the_bound_scales_with_tiny_and_huge_weights(size: float) -> None:
    weight = normal(4, 3, 3, 3)
    for image in ((3, 6, 6), (3, 40, 40)):
        plain = spectral_norm(Convolution(weight, image, padding=1), lower_steps=2).upper
        scaled = spectral_norm(Convolution(weight * size, image, padding=1), lower_steps=2).upper
        assert scaled == pytest.approx(plain * size, rel=1e-9)


def test_zero_weights_have_the_norm_zero() -> None:
    for image in ((2, 4, 4), (2, 50, 50)):
        assert spectral_norm(Convolution(torch.zeros(3, 2, 3, 3), image, padding=1)).upper <= 1e-300


def test_exact_norms_by_structure() -> None:
    assert spectral_norm(Identity((3, 4, 4))).upper == 1
    assert spectral_norm(Diagonal(torch.tensor([-3.0, 2.0]), (2, 4, 4))).upper == 3
    assert spectral_norm(average_pool((3, 8, 8), 2)).upper == pytest.approx(0.5, rel=1e-9)
    matrix = normal(40, 30)
    assert spectral_norm(Dense(matrix)).upper == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12)
    pointwise = Convolution(matrix[:, :, None, None], (30, 64, 64), 2)
    assert spectral_norm(pointwise).upper == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-9)


def test_an_interval_is_checked_and_an_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match="lower <= upper"):
        Bound(2.0, 1.0, "wrong")
    with pytest.raises(InputError, match="lower <= upper"):
        Bound(0.0, math.nan, "wrong")
    with pytest.raises(InputError, match="method must be one of"):
        spectral_norm(Identity((1,)), method="guess")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a zero-padded"):
        spectral_norm(Dense(normal(2, 2)), method="frequency")


def test_guarantees_add_their_failure_probabilities() -> None:
    assert str(Guarantee() & Guarantee()) == "deterministic"
    assert (Guarantee(1e-12) & Guarantee(1e-12)).failure_probability >= 2e-12
    assert str(Guarantee() & Guarantee(1e-9)) == "probability 1 - 1e-09"


def test_small_operators_are_decomposed_completely() -> None:
    assert is_small(KNOWN["one pixel"])
    assert spectral_norm(KNOWN["one pixel"]).method == "dense"
