"""Gram matrices as trigonometric polynomials, against the symbol's own matrices and dense singular values."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings

from robustres.certify.fourier.autocorrelation import gram_polynomial
from robustres.certify.fourier.symbol import coarse_frequencies
from robustres.certify.fourier.torus import HALF, embed
from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.norms.frequency_norm import polynomial_bound, symbol_chunks, torus_bound
from robustres.certify.proof.largest_singular_value import largest_eigenvalue
from tests.certify.strategies import convolutions

PHASES = (Fraction(0), HALF, Fraction(1, 3))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(convolutions(("zeros", "circular")))
def test_the_polynomial_has_the_eigenvalues_of_the_symbols_gram_matrices(map_: Convolution) -> None:
    embedding = embed([[map_]])
    if embedding is None:
        return
    polynomial = gram_polynomial(map_)
    for torus in embedding.tori(phases=PHASES)[::4]:
        symbols = torch.cat(list(symbol_chunks(map_, embedding, torus)))
        grams = polynomial.grams(torus, coarse_frequencies(torus)) * 4.0**polynomial.exponent
        assert grams.shape[0] == symbols.shape[0]
        assert polynomial.size == min(symbols.shape[1:])
        found = torch.linalg.eigvalsh(grams).clamp_min(0).sqrt()
        expected = torch.linalg.svdvals(symbols).flip(-1)
        assert torch.allclose(found, expected, atol=1e-6 * float(expected.max()))
        top = 2.0**polynomial.exponent * float(torch.linalg.eigvalsh(grams / 4.0**polynomial.exponent).max()) ** 0.5
        assert abs(top - float(expected.max())) <= 1e-12 * float(expected.max())


@settings(deadline=None, max_examples=40)
@given(convolutions(("zeros", "circular")))
def test_the_polynomial_bounds_the_true_norm_on_every_torus(map_: Convolution) -> None:
    embedding = embed([[map_]])
    if embedding is None:
        return
    exact = float(torch.linalg.svdvals(map_.dense())[0])
    for torus in embedding.tori(phases=PHASES)[::3]:
        bound = polynomial_bound(gram_polynomial(map_), torus)
        assert exact <= bound
        assert bound == pytest.approx(torus_bound(map_, embedding, torus, matrix_method="svd"), rel=1e-9)


def test_a_transposed_convolution_has_the_norm_of_its_forward_map() -> None:
    map_ = TransposedConvolution(normal(3, 2, 3, 3), (3, 5, 5), 2, 1, 1)
    embedding = embed([[map_]])
    assert embedding is not None
    for torus in embedding.tori(phases=PHASES):
        assert polynomial_bound(gram_polynomial(map_), torus) == pytest.approx(
            torus_bound(map_, embedding, torus), rel=1e-9
        )


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tiny_and_huge_kernels_keep_their_bound(size: float) -> None:
    weight, image = normal(4, 3, 3, 3), (3, 12, 12)
    embedding = embed([[Convolution(weight, image, padding=1)]])
    assert embedding is not None
    torus = embedding.tori()[0]
    bounds = [polynomial_bound(gram_polynomial(Convolution(weight * s, image, padding=1)), torus) for s in (1, size)]
    assert bounds[1] == pytest.approx(bounds[0] * size, rel=1e-12)


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
