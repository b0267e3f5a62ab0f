"""Every kind of linear map implements every function, and folding accounts for its rounding, even if weights cancel."""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustres.certify as certify_package
from robustres.certify.fourier.circular import wrapped
from robustres.certify.fourier.matrix_polynomial import polynomial
from robustres.certify.fourier.torus import passage
from robustres.certify.maps.convolution import Convolution, Transposed, average_pool, padded, separable
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import (
    Composition,
    Dense,
    Identity,
    LinearMap,
    Scaled,
    Sum,
)
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm, product_error
from robustres.certify.norms.linf_norm import linf_norm
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.norms.structural_norm import structural_norm
from robustres.numerics import gamma


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 100 * seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


CUT = Selection(torch.tensor([5, -1, 0, 0, 3, -1, 2, 2]), (2, 3, 1), (2, 2, 2))
# Each map with the number of roundings of its longest sum of products, counted by hand.
MAPS: dict[str, tuple[LinearMap, int]] = {
    "dense": (Dense(normal(3, 5)), 5),
    "dense, folded": (Dense(normal(3, 5), seen=4, magnitude=normal(3, 5).abs() * 2), 9),
    "same": (Identity((2, 3, 4)), 0),
    "flatten": (Identity((2, 3, 4), (24,)), 0),
    "channel scale": (Diagonal(normal(3), (3, 4, 5), seen=2), 3),
    "diagonal": (Diagonal(normal(2, 3)), 1),
    "selection": (CUT, 2),
    "separable": (separable(normal(3, 4), normal(6, 5), 2), 6 + 4 + 4),
    "pooling with uneven windows": (separable(normal(3, 5), normal(3, 5), 2, seen=3), 5 + 5 + 3 + 4),
    "scaled": (Scaled(-0.5, Dense(normal(4, 2))), 5),
    "grouped": (Convolution(normal(4, 3, 3, 2), (6, 7, 5), (2, 1), ((0, 2), (1, 0)), (1, 2), 2), 18),
    "wide": (Convolution(normal(7, 2, 3, 3), (2, 5, 4), padding=1), 63),
    "pooling": (average_pool((2, 4, 4), 2), 5),
    "circular": (Convolution(normal(2, 2, 3, 3), (2, 5, 4), padding=1, circular=True), 18 + 4),
    "reflect": (Convolution(normal(2, 2, 3, 3), (2, 7, 6), 2) @ padded((2, 5, 4), ((1, 1), (1, 1)), "reflect"), 18 + 4),
    "transposed": (Transposed(Convolution(normal(4, 3, 3, 2), (3, 10, 15), (2, 3), 1)), 24),
    "composition": (Composition([Identity((2, 3, 4), (24,)), Dense(normal(5, 24)), Dense(normal(2, 5))]), 29),
    "sum": (Sum((Identity((2, 3, 3)), Convolution(normal(2, 2, 3, 3), (2, 3, 3), padding=1))), 20),
}
FOLDED: dict[str, Sequence[LinearMap]] = {
    "two matrices": (Dense(normal(4, 3)), Dense(normal(2, 4))),
    "three matrices and a number": (Dense(normal(4, 3)), Scaled(0.1, Dense(normal(5, 4))), Dense(normal(2, 5))),
    "numbers": (Scaled(0.1, Identity((3,))), Scaled(0.7, Identity((3,))), Scaled(3.3, Dense(normal(2, 3)))),
    "normalisation before and after": (
        Diagonal(normal(4), (4, 3, 3)),
        Convolution(normal(2, 2, 2, 2), (4, 3, 3), groups=2),
        Diagonal(normal(2), (2, 2, 2)),
    ),
    "factors of columns": (Dense(normal(6, 4), out_shape=(2, 3)), Diagonal(normal(2, 3)), Dense(normal(3, 6), (2, 3))),
    "two scales": (Diagonal(normal(3), (3, 2)), Diagonal(normal(3, seed=1), (3, 2))),
    "rows of a product": (Dense(normal(4, 3)), Dense(normal(3, 4)), Selection(torch.tensor([2, 2, 0]), (3,), (3,))),
    "rows of a product and a zero": (
        Dense(normal(2, 3)),
        Dense(normal(3, 2)),
        Selection(torch.tensor([1, -1]), (3,), (2,)),
    ),
    "channels of a pixel reordered": (
        Convolution(normal(2, 2, 1, 1), (2, 1, 1)),
        Selection(torch.tensor([1, 0]), (2, 1, 1), (2, 1, 1)),
    ),
    "a channel of a pixel cut off, after": (
        Convolution(normal(2, 2, 1, 1), (2, 1, 1)),
        Selection(torch.tensor([0, -1]), (2, 1, 1), (2, 1, 1)),
    ),
    "a channel of a pixel cut off, before": (
        Selection(torch.tensor([-1, 1]), (2, 1, 1), (2, 1, 1)),
        Convolution(normal(2, 2, 1, 1), (2, 1, 1)),
    ),
    "channels reordered before a stride": (
        Selection(torch.arange(12).reshape(3, 4)[[2, 0, 1]].flatten(), (3, 2, 2), (3, 2, 2)),
        Convolution(normal(2, 3, 2, 2), (3, 2, 2), 2, 1),
    ),
    "channels reordered before groups": (
        Selection(torch.tensor([3, 1, 0, 2]), (4, 1, 1), (4, 1, 1)),
        Convolution(normal(2, 2, 1, 1), (4, 1, 1), groups=2),
    ),
    "a padded pixel": (
        Selection(torch.tensor([-1, -1, -1, -1, 0, -1, -1, -1, -1]), (1, 1, 1), (1, 3, 3)),
        Convolution(normal(2, 1, 3, 3), (1, 3, 3)),
    ),
    "a padding that lost its pixel": (
        Selection(torch.tensor([-1, -1, -1, -1]), (1, 1, 1), (1, 2, 2)),
        Convolution(normal(2, 1, 2, 2), (1, 2, 2)),
    ),
    "a selection of a selection": (
        Selection(torch.tensor([1, -1, 0]), (2,), (3,)),
        Selection(torch.tensor([-1, 2, 1, 0]), (3,), (4,)),
    ),
    "small times large": (Dense(normal(3, 2) * 1e-200), Dense(normal(2, 3) * 1e-200), Dense(normal(2, 2) * 1e300)),
    "numbers that underflow": (
        Scaled(1e-200, Identity((2,))),
        Scaled(1e-200, Dense(normal(2, 2))),
        Scaled(1e300, Identity((2,))),
    ),
    "scales that underflow": (Diagonal(normal(2) * 1e-200, (2,)), Diagonal(normal(2) * 1e-200, (2,))),
}
CANCELLING = (
    (1, [[1 + 2.0**-30], [1 + 2.0**-29]], [[1 + 2.0**-30, -1.0]]),
    (2, [[1 / 3, 1.0], [1 / 3, 1.0]], [[3.0, -3.0], [1.0, -1.0]]),
)


def kinds(base: type[Any] = LinearMap) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("robustres."):
            yield kind
            yield from kinds(kind)


QUESTIONS: dict[str, Callable[[LinearMap], Any]] = {
    "structural_norm": structural_norm,
    "passage": lambda map_: passage(map_, 0, (0, 1)),
    "polynomial": lambda map_: polynomial(map_, (4, 4)),
    "wrapped": lambda map_: wrapped(map_, (4, 4)),
}


def exact(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(number) for number in row] for row in matrix.tolist()]


def exact_product(maps: Sequence[LinearMap]) -> list[list[Fraction]]:
    total: list[list[Fraction]] = []
    for map_ in maps:
        factor, inner = (Fraction(map_.factor), map_.map) if isinstance(map_, Scaled) else (Fraction(1), map_)
        matrix = [[factor * number for number in row] for row in exact(inner.dense())]
        columns = list(zip(*total, strict=True))
        total = (
            matrix if not total else [[sum(map(Fraction.__mul__, row, column)) for column in columns] for row in matrix]
        )  # type: ignore[misc]
    return total


def assert_within(computed: Tensor, truth: list[list[Fraction]], allowed: Tensor, factor: float) -> None:
    for row, (numbers, limits) in enumerate(zip(computed.tolist(), allowed.tolist(), strict=True)):
        for column, (number, limit) in enumerate(zip(numbers, limits, strict=True)):
            error = abs(Fraction(number) - truth[row][column])
            assert error <= Fraction(factor) * Fraction(limit), (row, column, float(error), limit)
            assert abs(truth[row][column]) <= Fraction(limit), (row, column)


def test_every_kind_has_an_example_here() -> None:
    assert {type(map_) for map_, _ in MAPS.values()} == set(kinds())


def test_every_question_knows_every_kind() -> None:
    sources = [file.read_text() for file in Path(certify_package.__path__[0]).rglob("*.py")]
    asked = {name for text in sources for name in re.findall(r'unanswered\("(\w+)"', text)}
    assert asked == set(QUESTIONS)
    for map_, _ in MAPS.values():
        image = len(map_.in_shape) == 3
        invariant = image and all(passage(map_, axis, (0, map_.in_shape[1 + axis] - 1)) for axis in (0, 1))
        for name in ("structural_norm", "passage", *["polynomial", "wrapped"] * invariant):
            QUESTIONS[name](map_)


def test_a_new_kind_that_omits_a_function_fails() -> None:
    class Forgetful(LinearMap):
        in_shape = out_shape = (2,)

    with pytest.raises(TypeError, match="abstract"):
        Forgetful()  # type: ignore[abstract]
    assert {"absolute", "roundings", "cancels"} <= LinearMap.__abstractmethods__
    Forgetful.__abstractmethods__ = frozenset()
    forgetful = Forgetful()  # type: ignore[abstract]
    for question in QUESTIONS.values():
        with pytest.raises(TypeError, match="Forgetful has no implementation"):
            question(forgetful)


@pytest.mark.parametrize("name", MAPS)
def test_products_and_bounds_agree_with_the_dense_matrix(name: str) -> None:
    map_, roundings = MAPS[name]
    x, y = normal(2, *map_.in_shape), normal(2, *map_.out_shape)
    matrix = map_.dense()
    assert matrix.shape == (map_.out_size, map_.in_size)
    torch.testing.assert_close(map_(x).flatten(1), x.flatten(1) @ matrix.T)
    torch.testing.assert_close(map_.adjoint(y).flatten(1), y.flatten(1) @ matrix)
    whole = map_.absolute().dense()
    assert bool((whole >= matrix.abs() * (1 - 1e-15)).all())
    if not map_.cancels:
        torch.testing.assert_close(whole, matrix.abs())
    assert map_.roundings == roundings
    assert isinstance(map_.forward_roundings, int)
    assert map_.device == torch.device("cpu")
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    assert absolute_norm(map_) >= float(torch.linalg.matrix_norm(whole, 2)) * (1 - 1e-12)
    assert product_error(map_) >= gamma(ALGORITHM_FACTOR * roundings) * truth * (1 - 1e-12)
    assert truth * (1 - 1e-13) <= spectral_norm(map_).upper <= 1.3 * truth
    structural = structural_norm(map_)
    assert structural is None or abs(structural - truth) <= 1e-12 * truth
    rows = float(matrix.abs().sum(1).max())
    assert rows <= linf_norm(map_) <= rows * (1 + 1e-12) + (10 * rows if map_.cancels else 0.0)


@pytest.mark.parametrize("name", MAPS)
def test_single_products_round_no_more_than_their_bound(name: str) -> None:
    map_, _ = MAPS[name]
    if isinstance(map_, Composition | Sum) or map_.in_size > 60:
        pytest.skip("the exact product is taken of single, small maps")
    x = normal(1, *map_.in_shape)
    factor = gamma(ALGORITHM_FACTOR * map_.roundings)
    truth = exact_product([Dense(x.reshape(-1, 1)), map_])
    allowed = map_.absolute().dense() @ x.reshape(-1, 1).abs() * (1 + 1e-12)
    assert_within(map_(x).reshape(-1, 1), truth, allowed, factor)


@pytest.mark.parametrize("name", FOLDED)
def test_folded_maps_are_within_their_roundings_of_the_exact_product(name: str) -> None:
    maps = FOLDED[name]
    folded = composed(maps)
    parts = folded.parts if isinstance(folded, Composition) else (folded,)
    truth = exact_product(maps)
    if all(not isinstance(part, Composition) for part in parts):
        together = exact_product(parts)  # stored weights multiplied exactly; the difference is the rounding of folding
        seen = sum(getattr(part, "seen", 0) for part in parts)
        allowed = exact_product([part.absolute() for part in parts])
        for stored, wanted, limits in zip(together, truth, allowed, strict=True):
            for number, target, limit in zip(stored, wanted, limits, strict=True):
                assert abs(number - target) <= Fraction(gamma(seen)) * limit if seen else number == target
                assert abs(target) <= limit


@pytest.mark.parametrize(("width", "inner", "outer"), CANCELLING)
def test_folding_matrices_that_cancel_keeps_the_magnitude_of_the_terms(
    width: int, inner: list[list[float]], outer: list[list[float]]
) -> None:
    maps = [Dense(torch.tensor(matrix, dtype=torch.float64)) for matrix in (inner, outer)]
    folded = composed(maps)
    assert isinstance(folded, Dense)
    assert folded.magnitude is not None
    truth = exact_product(maps)
    assert_within(folded.matrix, truth, folded.magnitude, gamma(folded.seen))
    largest = max(abs(number) for row in truth for number in row)
    assert spectral_norm(folded).upper >= float(largest)
    assert linf_norm(folded) >= float(max(sum(abs(number) for number in row) for row in truth))
    again = composed([Identity((width,)), folded, Scaled(3.0, Identity((len(outer),)))])
    assert isinstance(again, Dense)
    assert again.magnitude is not None
    assert_within(again.matrix, [[3 * number for number in row] for row in truth], again.magnitude, gamma(again.seen))


def test_folding_keeps_maps_separate_where_products_would_lose_digits() -> None:
    assert isinstance(composed(FOLDED["small times large"][:2]), Composition)
    assert isinstance(composed(FOLDED["scales that underflow"]), Composition)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 0), (2, 1))])
def test_many_images_in_float64_have_the_answers_of_single_ones(stride: Any, padding: Any) -> None:
    for kernel in ((1, 1), (3, 2)):
        map_ = Convolution(normal(4, 2, *kernel), (2, 6, 7), stride, padding)
        x = normal(40, 2, 6, 7)
        single = torch.cat([map_(one[None]) for one in x])
        torch.testing.assert_close(map_(x), single, rtol=1e-12, atol=1e-12)
