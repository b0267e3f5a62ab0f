"""The reduced form of a block against the full form, and the algebra of its polynomials."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustres.certify.blocks.joint_bound import branch_bound
from robustres.certify.blocks.reduced_block import ReducedBlock, inverse_from_above, reduced_block
from robustres.certify.blocks.reduced_proof import proved_square
from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.blocks.torus_network import image_on_tori
from robustres.certify.fourier.matrix_polynomial import HermitianPolynomial, MatrixPolynomial, polynomial
from robustres.certify.fourier.torus import Torus, coarse_frequencies
from robustres.certify.maps.convolution import Convolution, average_pool
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Identity, LinearMap, Scaled
from robustres.certify.maps.sector import GroupSort
from robustres.certify.proof.largest_singular_value import ritz_values
from robustres.numerics import gamma


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_sums_products_and_transposes_of_polynomials_are_those_of_their_values() -> None:
    maps = [Convolution(normal(3, 2, 3, 3), (2, 8, 8), padding=1), Convolution(normal(4, 3, 2, 1), (3, 8, 8))]
    first, second = (polynomial(map_, (1, 1)) for map_ in maps)
    assert first is not None
    assert second is not None
    torus = Torus((9, 10))
    frequencies = coarse_frequencies(torus)
    W, V = first[0].at(torus, frequencies), second[0].at(torus, frequencies)
    product = second[0] @ first[0]
    assert torch.allclose(product.at(torus, frequencies), V @ W)
    assert torch.allclose(first[0].transposed().at(torus, frequencies), W.mH)
    both = HermitianPolynomial.twice_real(first[0].transposed() @ first[0])
    assert torch.allclose(both.at(torus, frequencies), 2 * W.mH @ W)
    assert bool((product.magnitude >= torch.stack(list(product.parts.values())).abs().sum(0)).all())


Exact = dict[tuple[int, int], dict[tuple[int, int], Fraction]]


def exact(found: MatrixPolynomial) -> Exact:
    """The stored parts as fractions."""
    sides = [range(side) for side in found.magnitude.shape]
    return {
        lag: {(i, j): Fraction(float(part[i, j])) for i in sides[0] for j in sides[1]}
        for lag, part in found.parts.items()
    }


def exact_product(first: Exact, second: Exact, *, conjugated: bool) -> Exact:
    """The product in rational arithmetic, optionally with the first factor transposed."""
    total: Exact = {}
    for (a, b), left in first.items():
        for (c, d), right in second.items():
            part = total.setdefault((c - a, d - b) if conjugated else (a + c, b + d), {})
            for (i, k), value in left.items():
                for (m, j), other in right.items():
                    row, inner = (k, i) if conjugated else (i, k)
                    if inner == m:
                        part[row, j] = part.get((row, j), Fraction(0)) + value * other
    return total


def accounted(found: MatrixPolynomial | HermitianPolynomial, truth: Exact) -> float:
    """The largest ratio of an entry's true error, summed over the parts, to its declared error."""
    shares = [0.0]
    rows, columns = found.magnitude.shape
    for i in range(rows):
        for j in range(columns):
            off = [abs(Fraction(float(part[i, j])) - truth[lag][i, j]) for lag, part in found.parts.items()]
            allowed = gamma(found.roundings) * float(found.magnitude[i, j])
            shares.append(float(sum(off)) / allowed if allowed > 0 else math.inf)
    return max(shares)


def test_the_declared_errors_of_polynomials_cover_their_roundings() -> None:
    first = MatrixPolynomial.exact({(0, 0): normal(3, 4), (0, 1): normal(3, 4, seed=1), (1, -1): normal(3, 4, seed=2)})
    second = MatrixPolynomial.exact({(0, 0): normal(4, 3, seed=3), (1, 0): normal(4, 3, seed=4)})
    product = first @ second
    gram = HermitianPolynomial.gram(first)
    truth = exact_product(exact(first), exact(second), conjugated=False)
    assert 0 < accounted(product, truth) <= 1
    assert 0 < accounted(gram, exact_product(exact(first), exact(first), conjugated=True)) <= 1
    rows, columns = normal(3, seed=5).abs(), normal(3, seed=6).abs()
    factors = {(i, j): Fraction(float(rows[i])) * Fraction(float(columns[j])) for i in range(3) for j in range(3)}
    between = {lag: {place: factors[place] * part[place] for place in part} for lag, part in truth.items()}
    assert 0 < accounted(product.scaled(rows, columns), between) <= 1
    values = gram.at(Torus((7, 5)), torch.tensor([[2, 3]]))[0]
    angles = [2 * math.pi * (2 * a / 7 + 3 * b / 5) for a, b in gram.parts]
    parts = zip(angles, gram.parts.items(), strict=True)
    waves = [part * complex(math.cos(t), math.sin(t)) * (0.5 if lag == (0, 0) else 1) for t, (lag, part) in parts]
    half = torch.stack(waves).sum(0)
    assert 0 < float(torch.linalg.matrix_norm(values - half - half.mH, 2)) <= gram.error


@st.composite
def reducible_blocks(draw: st.DrawFn) -> ResidualBlock:
    """Basic blocks, bottlenecks and blocks that begin with an activation; all kinds of shortcuts."""
    channels, hidden, side = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(2, 4))
    stride, kernel, seed = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3])), draw(st.integers(0, 999))
    image, size = (channels, side, side), draw(st.floats(0.2, 1.5))
    layers: list[LinearMap] = []
    shape = image
    if draw(st.booleans()):
        first = Convolution(size * normal(hidden, channels, 1, 1, seed=seed + 3), image)
        layers.append(draw(st.sampled_from([first, Identity(image)])))
        shape = layers[0].out_shape
    pads = ((kernel - 1) // 2, kernel // 2)
    layers.append(Convolution(size * normal(hidden, shape[0], kernel, kernel, seed=seed), shape, stride, (pads, pads)))
    shape = layers[-1].out_shape
    last = draw(st.sampled_from([1, 3]))
    layers.append(Convolution(normal(channels, hidden, last, last, seed=seed + 1), shape, 1, last // 2))
    pointwise = Convolution(normal(channels, channels, 1, 1, seed=seed + 2), image, stride)
    shortcuts: list[LinearMap] = [pointwise]
    if stride == 1:
        shortcuts += [Identity(image), Scaled(-0.5, Identity(image)), Diagonal(normal(channels).abs(), image)]
    else:
        pool = average_pool(image, 2)
        shortcuts.append(Convolution(normal(channels, channels, 1, 1, seed=seed + 2), pool.out_shape) @ pool)
    slopes = draw(st.sampled_from([(0.0, 1.0), (0.0, 0.5)]))
    return ResidualBlock(draw(st.sampled_from(shortcuts)), tuple(layers), (slopes,) * (len(layers) - 1))


def both_forms(block: ResidualBlock, twist: int = 0) -> tuple[ReducedBlock, Torus, "WholeForm"]:
    regions, _ = image_on_tori(block.network())
    region = regions[twist]
    multiplicity = region.multiplicity[region.order[0]]
    reduced = reduced_block(block, multiplicity)
    assert reduced is not None
    return reduced, region.torus, WholeForm(block, multiplicity, region.torus)


class WholeForm:
    """The inequality with the input and all hidden layers as written down in section 3.3 of the mathematics."""

    def __init__(self, block: ResidualBlock, multiplicity: tuple[int, int], torus: Torus) -> None:
        self.frequencies = coarse_frequencies(torus)
        self.shortcut = polynomial(block.shortcut, multiplicity)[0].at(torus, self.frequencies)
        layers = []
        self.tiles = []
        for layer, slopes in zip(block.layers, ((0.0, 1.0), *block.slopes), strict=True):
            found, multiplicity = polynomial(layer, multiplicity)
            assert not isinstance(slopes, GroupSort)
            layers.append(slopes[1] * found.at(torus, self.frequencies))
            self.tiles.append(math.prod(multiplicity))
        *inner, self.outer = layers
        sizes = [len(layer[0]) for layer in inner]
        self.inputs = torch.cat(
            [inner[0], *(layer.new_zeros(*layer.shape[:2], inner[0].shape[2]) for layer in inner[1:])], 1
        )
        self.hidden = self.inputs.new_zeros(len(self.inputs), sum(sizes), sum(sizes))
        if len(inner) == 2:
            self.hidden[:, sizes[0] :, : sizes[0]] = inner[1]
        self.outputs = torch.cat([self.outer.new_zeros(*self.outer.shape[:2], sum(sizes[:-1])), self.outer], 2)

    def gain(self, values: Tensor, channels: list[int]) -> float:
        parts = zip(torch.split(values, channels), self.tiles, strict=False)
        weights = torch.diag(torch.cat([part.repeat(count) for part, count in parts])).to(self.inputs.dtype)
        crossed = weights @ self.hidden
        matrix = 2 * weights - crossed - crossed.mH - self.outputs.mH @ self.outputs
        if float(torch.linalg.eigvalsh(matrix).min()) <= 0:
            return math.inf
        coupling = self.outputs.mH @ self.shortcut + weights @ self.inputs
        whole = self.shortcut.mH @ self.shortcut + coupling.mH @ torch.linalg.solve(matrix, coupling)
        return float(torch.linalg.eigvalsh(whole).max())


def admissible(whole: WholeForm, reduced: ReducedBlock) -> tuple[Tensor, float]:
    """Random multipliers with a finite gain, and that gain."""
    values = normal(sum(reduced.channels), seed=5).abs() + 0.5
    for _ in range(60):
        found = whole.gain(values, reduced.channels)
        if math.isfinite(found):
            return values, found
        values = 1.5 * values
        if len(reduced.channels) == 2:
            values[: reduced.channels[0]] *= 1.5
    return values, math.inf


def floor(whole: WholeForm) -> float:
    """No value lies below |S|^2."""
    return float(torch.linalg.matrix_norm(whole.shortcut, 2).max()) ** 2


@settings(deadline=None, max_examples=25)
@given(reducible_blocks(), st.integers(0, 3))
def test_the_reduced_inequality_holds_exactly_where_the_whole_one_does(block: ResidualBlock, twist: int) -> None:
    reduced, torus, whole = both_forms(block, twist)
    values, value = admissible(whole, reduced)
    assume(math.isfinite(value) and value > 1.001 * floor(whole))
    above = reduced.gram(values, value * (1 + 1e-6))
    assert above is not None
    assert float(torch.linalg.eigvalsh(above.at(torus, whole.frequencies)).max()) < 1
    below = reduced.gram(values, value * (1 - 1e-6))
    assert below is None or float(torch.linalg.eigvalsh(below.at(torus, whole.frequencies)).max()) > 1


@settings(deadline=None, max_examples=15)
@given(reducible_blocks())
def test_the_proof_of_the_reduced_form_finds_the_gain_of_the_whole_form(block: ResidualBlock) -> None:
    reduced, torus, whole = both_forms(block)
    values, value = admissible(whole, reduced)
    assume(math.isfinite(value) and value > 1.01 * floor(whole))
    proved, missed = proved_square(reduced, torus, values, near=value, limit=math.inf)
    assert value * (1 - 1e-12) <= proved <= value * (1 + 2e-3)
    assert not len(missed)
    for claimed in (0.999999, 0.999, 0.98, 0.7):  # the result of the search is not trusted
        proved, missed = proved_square(reduced, torus, values, near=claimed * value, limit=math.inf)
        assert proved >= value * (1 - 1e-12)
        assert len(missed)
    assert proved_square(reduced, torus, values, near=0.9 * value, limit=0.9 * value)[0] == math.inf


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(-10, 0))
def test_the_upper_bound_of_the_inverse_is_valid(size: int, seed: int, exponent: float) -> None:
    factor = normal(size, size, seed=seed)
    matrix = factor @ factor.mT + 10**exponent * torch.eye(size, dtype=torch.float64)
    above = inverse_from_above(matrix, matrix.abs(), 4)
    if above is None:
        assert exponent < -3
        return
    assert above.root is not None
    assert above.factor >= 1
    whitened = above.root @ matrix @ above.root.mT  # factor root^T root >= matrix^-1 means that this is >= 1 / factor
    assert float(torch.linalg.eigvalsh(whitened).min()) * above.factor >= 1 - 1e-12
    assert inverse_from_above(matrix - 2 * torch.diag(matrix.diagonal()), matrix.abs(), 4) is None


def test_the_error_bound_loosens_the_inverse() -> None:
    matrix = 4 * torch.eye(3, dtype=torch.float64)
    exact, rough = (inverse_from_above(matrix, matrix, count) for count in (0, 10**12))
    assert exact is not None
    assert rough is not None
    assert exact.factor < 1 + 1e-13 < 1 + 1e-5 < rough.factor
    assert inverse_from_above(matrix, 1e16 * matrix, 4) is None  # the exact matrix may be indefinite


IMAGE = (2, 6, 6)
INNER, OUTER = Convolution(normal(3, 2, 3, 3), IMAGE, padding=1), Convolution(normal(2, 3, 3, 3), (3, 6, 6), padding=1)


@pytest.mark.parametrize(
    "block",
    [
        ResidualBlock(Identity(IMAGE), (INNER, OUTER), ((0.1, 1.0),)),
        ResidualBlock(
            Identity(IMAGE),
            (Convolution(normal(4, 2, 1, 1), IMAGE), Convolution(normal(2, 4, 1, 1), (4, 6, 6))),
            (GroupSort(2),),
        ),
        ResidualBlock(Convolution(normal(2, 2, 3, 3), IMAGE, padding=1), (INNER, OUTER), ((0.0, 1.0),)),
        ResidualBlock(Identity(IMAGE), (INNER, OUTER @ Identity((3, 6, 6)), INNER, OUTER), ((0.0, 1.0),) * 3),
        ResidualBlock(
            Identity(IMAGE), (Convolution(normal(2, 2, 3, 3), IMAGE, padding=1), INNER, OUTER), ((0.0, 1.0),) * 2
        ),
    ],
    ids=["leaky", "sorted", "3x3 shortcut", "three activations", "3x3 first of two"],
)
def test_other_blocks_have_no_reduced_form(block: ResidualBlock) -> None:
    regions, _ = image_on_tori(block.network())
    assert reduced_block(block, regions[0].multiplicity[regions[0].order[0]]) is None


def test_the_same_effort_gives_the_same_bound_and_an_interrupted_search_is_still_proved() -> None:
    image = (6, 16, 16)
    layers = [Convolution(0.3 * normal(6, 6, 3, 3, seed=seed), image, padding=1) for seed in (1, 2)]
    bounds = [
        branch_bound(Identity(image), layers, slopes=[(0.0, 1.0)], effort=effort) for effort in (1e-3, 0.1, 0.1, 0.6)
    ]
    assert bounds[1].upper == bounds[2].upper
    assert all(bounds[3].lower <= bound.upper <= bound.candidates["textbook"] for bound in bounds)
    assert bounds[3].upper < bounds[0].upper


def test_the_ritz_value_of_a_multiple_of_the_identity_is_its_factor() -> None:
    identity = 3 * torch.eye(8, dtype=torch.complex128).expand(2, -1, -1)
    assert torch.allclose(ritz_values(identity), torch.full((2,), 3.0, dtype=torch.float64), rtol=1e-14)
