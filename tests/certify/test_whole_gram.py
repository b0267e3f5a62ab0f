"""The whole Gram matrix of a convolution against dense singular values."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from robustres.certify.maps.convolution import Convolution
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.norms.whole_gram import whole_gram, whole_gram_bound
from robustres.certify.proof import largest_singular_value
from tests.certify.strategies import convolutions


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truth(map_: Convolution) -> float:
    return float(torch.linalg.svdvals(map_.dense())[0])


@settings(deadline=None, max_examples=30)
@given(convolutions(most_groups=1))
def test_the_gram_matrix_is_that_of_the_dense_map(map_: Convolution) -> None:
    assume(bool((map_.weight != 0).any()) and not map_.circular)
    dense = map_.dense()
    gram, error = whole_gram(map_)
    smaller = dense @ dense.mT if len(gram) == map_.out_size else dense.mT @ dense
    assert len(gram) == len(smaller) == min(map_.in_size, map_.out_size)
    size = truth(map_) ** 2
    # The order is position, channel.
    assert torch.allclose(torch.linalg.eigvalsh(gram), torch.linalg.eigvalsh(smaller), atol=1e-11 * size)
    assert 0 <= error < 1e-9 * float(map_.weight.abs().sum()) ** 2


@settings(deadline=None, max_examples=25)
@given(convolutions(), st.sampled_from([1e-9, 0.05, 10.0]))
def test_the_proved_bound_holds_at_every_budget(map_: Convolution, seconds: float) -> None:
    found = whole_gram_bound(map_, seconds=seconds)
    if found is not None:
        assert truth(map_) <= found <= truth(map_) * (1 + 1e-5) + 1e-4 * float(map_.weight.norm())


def test_a_convolution_that_reads_only_padding_has_norm_zero() -> None:
    map_ = Convolution(torch.ones(1, 1, 1, 1, dtype=torch.float64), (1, 1, 1), (1, 2), ((0, 0), (1, 0)))
    assert truth(map_) == 0
    assert whole_gram_bound(map_, seconds=0.05) == pytest.approx(0, abs=1e-300)


def test_the_automatic_bound_uses_the_whole_matrix_where_it_fits() -> None:
    map_ = Convolution(normal(40, 40, 3, 3), (40, 5, 5), padding=1)
    bound = spectral_norm(map_, lower_steps=200)
    assert bound.method == "dense"
    assert bound.tightness <= 1.001
    assert spectral_norm(map_, seconds=0.03).method == "frequency"


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tiny_and_huge_kernels_keep_their_bound(size: float) -> None:
    weight, image = normal(4, 3, 3, 3), (3, 6, 6)
    plain, scaled = (spectral_norm(Convolution(weight * s, image, padding=1)).upper for s in (1, size))
    assert scaled == pytest.approx(plain * size, rel=1e-9)


def test_the_bound_is_proved_regardless_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = Convolution(normal(3, 2, 3, 3), (2, 7, 7), padding=1)
    found = largest_singular_value.ritz_values
    for share in (0.5, 0.995):
        monkeypatch.setattr(largest_singular_value, "ritz_values", lambda g, steps, s=share: s * found(g, steps=steps))
        bound = whole_gram_bound(convolution, seconds=1.0)
        assert bound is not None
        assert bound >= truth(convolution)
