"""The Gram matrix of a zero-padded convolution with an axis kept as it is: the other one on a torus, or none at all.

Embedding an image in a torus costs where the image is small beside the kernel. An axis that is kept needs no embedding:
its positions are channels, and what the padding cuts off is cut off. With one axis kept, the other on a torus of N
points, the matrices per frequency are C n wide, of N / 2 frequencies; with both kept there is one matrix, C n_1 n_2
wide, and nothing is lost. Either way the Gram matrix is a sum of Kronecker products of the kernel's own products
K_a K_b^T with the 0/1 matrices that say which positions meet, so that it is cheap beside its factorisation.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from robustres.certify.fourier.matrix_polynomial import HermitianPolynomial, Lag
from robustres.certify.fourier.torus import HALF, Torus, coarse_frequencies, embed
from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.rounding import absolute_norm
from robustres.certify.norms.ritz_pair import top_ritz_pair
from robustres.certify.proof.largest_singular_value import proved_below, times_power_of_two
from robustres.numerics import gamma, rounded_up

MARGINS = (1e-6, 1e-4, 1e-3, 1e-2)
CHUNK_BYTES = 64 * 2**20
RITZ_STEPS = 50


@dataclass(frozen=True)
class Axis:
    """How one axis is treated. kept: as it is, else on a torus. stride, dilation, pad, taps, inputs, outputs: sizes."""

    kept: bool
    stride: int
    dilation: int
    pad: int
    taps: int
    inputs: int
    outputs: int

    def meetings(self, first: int, second: int, *, of_outputs: bool) -> tuple[int, Tensor] | None:
        """Lag, and 0/1 matrix of the pairs of outputs (inputs) that meet in one input (output) through two taps."""
        a, b = (tap * self.dilation - self.pad for tap in (first, second))
        if not self.kept:
            same = (a - b) % self.stride == 0
            if of_outputs:
                return ((a - b) // self.stride, torch.ones(1, 1, dtype=torch.float64)) if same else None
            place_a, place_b = a // self.stride, b // self.stride
            residues = torch.zeros(self.stride, self.stride, dtype=torch.float64)
            residues[a % self.stride, b % self.stride] = 1
            return place_b - place_a, residues
        size = self.outputs if of_outputs else self.inputs
        matrix = torch.zeros(size, size, dtype=torch.float64)
        for output in range(self.outputs):
            i, j = self.stride * output + a, self.stride * output + b
            if of_outputs:
                other, rest = divmod(i - b, self.stride)
                if rest == 0 and 0 <= i < self.inputs and 0 <= other < self.outputs:
                    matrix[output, other] = 1
            elif 0 <= i < self.inputs and 0 <= j < self.inputs:
                matrix[i, j] = 1
        return (0, matrix) if bool(matrix.any()) else None


def kept_axes_bound(convolution: Convolution, *, seconds: float, dense: bool = True) -> tuple[float, str] | None:
    """An upper bound of the norm of a zero-padded convolution and how it was found, deterministic.

    "dense" where both axes can be kept within `seconds` of a nominal core, else "half torus", the smallest of those
    that fit: either axis kept, the other twisted by half a turn or not. None where nothing fits or applies.

    dense: False leaves out that both axes are kept.
    """
    embedding = embed([[convolution]])
    if convolution.groups > 1 or convolution.padding_mode != "zeros" or embedding is None:
        return None
    largest = float(convolution.weight.detach().abs().max()) if convolution.weight.numel() else 0.0
    if not 0 < largest < math.inf:
        return None
    exponent = math.frexp(largest)[1]
    scaled = replace(convolution, weight=times_power_of_two(convolution.weight.detach(), -exponent))
    name, tries = "dense", [((True, True), Torus((1, 1)))]
    if not dense or nominal_seconds(scaled, *tries[0]) > seconds:
        points = embedding.points
        half = [((True, False), Torus((1, points[1]), (Fraction(0), phase))) for phase in (Fraction(0), HALF)]
        half += [((False, True), Torus((points[0], 1), (phase, Fraction(0)))) for phase in (Fraction(0), HALF)]
        name, tries = "half torus", [half[place] for place in (0, 2, 1, 3)]
    squares: list[float] = []
    kept, gram = None, None
    for axes, torus in tries:
        seconds -= nominal_seconds(scaled, axes, torus)
        if seconds < 0:
            break
        if axes != kept or gram is None:
            kept, gram = axes, kept_gram(scaled, axes)
        squares.append(_proved_top(gram, torus, min(squares, default=math.inf)))
    if not squares:
        return None
    return rounded_up(math.ldexp(rounded_up(math.sqrt(min(squares)), 4), exponent), 1), name


def nominal_seconds(convolution: Convolution, kept: tuple[bool, bool], torus: Torus) -> float:
    """Two factorisations at every frequency, and the products of the kernel, on a core of 2e10 operations."""
    width = min(gram_width(convolution, kept, of_outputs=side) for side in (True, False))
    complex_ = not all(kept)
    frequencies = len(coarse_frequencies(torus))
    factorisations = frequencies * (4 if complex_ else 1) * (2 * width**3 / 3 + 400 * width**2)
    products = 2 * math.prod(convolution.weight.shape[2:]) ** 2 * min(convolution.weight.shape[:2]) ** 3
    return 0.02 + (factorisations + products) / 2e10


def _proved_top(gram: HermitianPolynomial, torus: Torus, stop_above: float) -> float:
    """The largest eigenvalue over the frequencies, from above: an estimate and the least margin that is proved."""
    if not bool(gram.magnitude.any()):
        return 0.0  # the map is zero: every tap reads padding only
    frequencies = coarse_frequencies(torus).to(gram.magnitude.device)
    chunks = torch.split(frequencies, max(1, CHUNK_BYTES // (16 * len(gram.magnitude) ** 2)))
    value = max(float(top_ritz_pair(gram.at(torus, part), steps=RITZ_STEPS)[0].max()) for part in chunks)
    if value > stop_above:
        return math.inf
    for margin in MARGINS:
        tried = value * (1 + margin) + 4 * gram.error
        if all(bool(proved_below(gram.at(torus, part), tried, gram.error).all()) for part in chunks):
            return tried
    return math.inf


def kept_gram(convolution: Convolution, kept: tuple[bool, bool]) -> HermitianPolynomial:
    """The smaller Gram matrix of a zero-padded convolution without groups; kept axes must not be circular."""
    axes = _axes(convolution, kept)
    of_outputs = gram_width(convolution, kept, of_outputs=True) <= gram_width(convolution, kept, of_outputs=False)
    taps = list(product(range(axes[0].taps), range(axes[1].taps)))
    weight = convolution.weight.detach()
    width = gram_width(convolution, kept, of_outputs=of_outputs)
    parts: dict[Lag, Tensor] = {(0, 0): weight.new_zeros(width, width)}
    for first, second in product(taps, taps):
        meetings = [axis.meetings(first[k], second[k], of_outputs=of_outputs) for k, axis in enumerate(axes)]
        if meetings[0] is None or meetings[1] is None:
            continue
        lag = (meetings[0][0], meetings[1][0])
        if lag < (0, 0):
            continue
        left, right = weight[:, :, first[0], first[1]], weight[:, :, second[0], second[1]]
        block = left @ right.mT if of_outputs else left.mT @ right
        places = torch.kron(meetings[0][1], meetings[1][1]).to(block.device)
        whole = parts[lag] if lag in parts else parts.setdefault(lag, weight.new_zeros(width, width))
        blocks = whole.view(len(places), len(block), len(places), len(block))
        for row, column in places.nonzero().tolist():
            blocks[row, :, column] += block
    size = absolute_norm(convolution) * (1 + gamma(8 + 2 * len(taps) * sum(weight.shape[:2])))
    # Not entry by entry, but its row sums, all that `error` looks at, bound the norm of the matrix of absolute values.
    magnitude = torch.full((width, width), size * size / width, dtype=torch.float64, device=weight.device)
    return HermitianPolynomial(parts, magnitude, max(weight.shape[:2]) + len(taps) ** 2 + 4 + 2 * convolution.seen)


def gram_width(convolution: Convolution, kept: tuple[bool, bool], *, of_outputs: bool) -> int:
    """Rows of the Gram matrix of the outputs, C C^T, or of the inputs."""
    width = convolution.out_shape[0] if of_outputs else convolution.in_shape[0]
    for axis in _axes(convolution, kept):
        width *= (axis.outputs if axis.kept else 1) if of_outputs else (axis.inputs if axis.kept else axis.stride)
    return width


def _axes(convolution: Convolution, kept: tuple[bool, bool]) -> tuple[Axis, Axis]:
    first, second = (
        Axis(
            kept[k],
            convolution.stride[k],
            convolution.dilation[k],
            convolution.padding[k][0],
            convolution.weight.shape[2 + k],
            convolution.in_shape[1 + k],
            convolution.out_shape[1 + k],
        )
        for k in (0, 1)
    )
    return first, second
