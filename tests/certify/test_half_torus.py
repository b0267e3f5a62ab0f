"""Convolutions with axes kept as they are, against dense singular values."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from robustres.certify.fourier.torus import HALF, Torus, coarse_frequencies, embed
from robustres.certify.maps.convolution import Convolution
from robustres.certify.norms import half_torus
from robustres.certify.norms.frequency_norm import frequency_bound
from robustres.certify.norms.half_torus import kept_axes_bound, kept_gram
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError
from tests.certify.strategies import convolutions


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truth(map_: Convolution) -> float:
    return float(torch.linalg.svdvals(map_.dense())[0])


@settings(deadline=None, max_examples=30)
@given(convolutions(most_groups=1))
def test_both_axes_kept_give_the_dense_gram_matrix(map_: Convolution) -> None:
    assume(bool((map_.weight != 0).any()))
    dense = map_.dense()
    gram = kept_gram(map_, (True, True)).parts[0, 0]
    smaller = dense @ dense.mT if len(gram) == map_.out_size else dense.mT @ dense
    if len(gram) == len(smaller):  # order: position, channel
        assert torch.allclose(
            torch.linalg.eigvalsh(gram), torch.linalg.eigvalsh(smaller), atol=1e-11 * truth(map_) ** 2
        )
    assert float(torch.linalg.eigvalsh(gram)[-1]) == pytest.approx(
        truth(map_) ** 2, abs=1e-12 * truth(map_) ** 2 + 1e-300
    )


@settings(deadline=None, max_examples=30)
@given(convolutions(most_groups=1), st.booleans(), st.sampled_from([0, HALF]), st.integers(0, 1))
def test_every_half_torus_bounds_the_true_norm(map_: Convolution, rows: bool, phase: float, larger: int) -> None:
    embedding = embed([[map_]])
    assume(embedding is not None)
    assert embedding is not None
    kept = (rows, not rows)
    points = tuple(1 if axis else n + larger for axis, n in zip(kept, embedding.points, strict=True))
    torus = Torus(points, tuple(0 if axis else phase for axis in kept))  # type: ignore[arg-type]
    gram = kept_gram(map_, kept)
    top = float(torch.linalg.eigvalsh(gram.at(torus, coarse_frequencies(torus))).max())
    assert truth(map_) ** 2 <= top * (1 + 1e-12) + gram.error


@settings(deadline=None, max_examples=25)
@given(convolutions(), st.sampled_from([1e-9, 0.05, 10.0]), st.booleans())
def test_the_proved_bound_holds_at_every_budget(map_: Convolution, seconds: float, dense: bool) -> None:
    found = kept_axes_bound(map_, seconds=seconds, dense=dense)
    if found is not None:
        assert truth(map_) <= found[0]
        if found[1] == "dense":
            assert found[0] <= truth(map_) * (1 + 1e-5) + 1e-4 * float(map_.weight.norm())


def test_a_convolution_that_reads_only_padding_has_norm_zero() -> None:
    map_ = Convolution(torch.ones(1, 1, 1, 1, dtype=torch.float64), (1, 1, 1), (1, 2), ((0, 0), (1, 0)))
    assert truth(map_) == 0
    assert kept_axes_bound(map_, seconds=0.05) == (pytest.approx(0, abs=1e-300), "dense")


@pytest.mark.parametrize(("c_in", "c_out", "side", "stride"), [(6, 6, 8, 1), (6, 12, 8, 2), (6, 6, 7, 1)])
def test_small_images_are_bounded_within_two_percent(c_in: int, c_out: int, side: int, stride: int) -> None:
    map_ = Convolution(normal(c_out, c_in, 3, 3), (c_in, side, side), stride, 1)
    torus = frequency_bound(map_)
    half = spectral_norm(map_, method="half torus").upper
    assert torus is not None
    assert truth(map_) <= half <= min(1.02 * truth(map_), torus)


def test_the_automatic_bound_is_the_whole_matrix_where_it_fits() -> None:
    map_ = Convolution(normal(40, 40, 3, 3), (40, 5, 5), padding=1)
    bound = spectral_norm(map_, lower_steps=200)
    assert bound.method == "dense"
    assert bound.tightness <= 1.001
    assert spectral_norm(map_, seconds=0.06).method == "half torus"


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tiny_and_huge_kernels_keep_their_bound(size: float) -> None:
    weight, image = normal(4, 3, 3, 3), (3, 6, 6)
    plain, scaled = (
        spectral_norm(Convolution(weight * s, image, padding=1), method="half torus", lower_steps=2).upper
        for s in (1, size)
    )
    assert scaled == pytest.approx(plain * size, rel=1e-9)


def test_other_maps_are_refused() -> None:
    with pytest.raises(InputError, match="without groups"):
        spectral_norm(Convolution(normal(4, 2, 3, 3), (4, 6, 6), padding=1, groups=2), method="half torus")


def test_a_half_torus_is_proved_at_every_frequency_whatever_the_search_says(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = Convolution(normal(3, 2, 3, 3), (2, 7, 7), padding=1)
    found = half_torus.top_ritz_pair
    monkeypatch.setattr(half_torus, "CHUNK_BYTES", 1)  # each frequency on its own
    for share in (0.5, 0.97):
        monkeypatch.setattr(
            half_torus, "top_ritz_pair", lambda grams, steps, s=share: (s * found(grams, steps=steps)[0], None)
        )
        bound = kept_axes_bound(convolution, seconds=math.inf, dense=False)
        assert bound is not None
        assert bound[0] >= truth(convolution)
