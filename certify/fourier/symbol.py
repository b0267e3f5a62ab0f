"""The symbol of a shift-invariant map: its matrix at each coarse frequency of a torus.

At coarse frequency g, a signal with C channels at multiplicity (r_1, r_2) has r_1 r_2 C components: the frequencies
g + j M, j in {0..r_1-1} x {0..r_2-1}, of each channel, ordered (j_1, j_2, channel). A stride makes several frequencies
fall on one (aliasing), with the factor 1/sqrt(s) per axis under unitary transforms. Kernels are shifted by their
padding, so the symbols of several layers are in phase and may be added and multiplied.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.fourier.torus import HALF, Torus
from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.maps.linear_map import ChannelScale, Composition, Identity, LinearMap, Scaled, Sum, unanswered

Pair = tuple[int, int]


def coarse_frequencies(torus: Torus) -> Tensor:
    """(F, 2) integers: one of each pair of conjugate frequencies, whose symbols have equal singular values."""
    rows, columns = torus.points
    half = all(phase in (0, HALF) for phase in torus.phase)
    if half:
        columns = columns // 2 + 1 if torus.phase[1] == 0 else (columns + 1) // 2
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def symbol(map_: LinearMap, torus: Torus, frequencies: Tensor, multiplicity: Pair) -> tuple[Tensor, Pair]:
    """The matrices (F, r_out C_out, r_in C_in), complex, and the multiplicity of the output; differentiable.

    multiplicity: of the input, per axis; `robustres.certify.fourier.torus.embed` gives one that fits.
    """
    match map_:
        case Convolution():
            return convolution_symbol(map_, torus, frequencies, multiplicity)
        case TransposedConvolution():
            fine = (multiplicity[0] * map_.stride[0], multiplicity[1] * map_.stride[1])
            forward, _ = convolution_symbol(map_.forward_map, torus, frequencies, fine)
            return forward.mH, fine
        case Scaled():
            inner, out = symbol(map_.map, torus, frequencies, multiplicity)
            return map_.factor * inner, out
        case Sum():
            terms = [symbol(term, torus, frequencies, multiplicity) for term in map_.terms]
            total = terms[0][0]
            for term, _ in terms[1:]:
                total = total + term
            return total, terms[0][1]
        case Composition():
            product, out = symbol(map_.parts[0], torus, frequencies, multiplicity)
            for part in map_.parts[1:]:
                factor, out = symbol(part, torus, frequencies, out)
                product = factor @ product
            return product, out
        case Identity():
            size = multiplicity[0] * multiplicity[1] * map_.in_shape[0]
            eye = torch.eye(size, dtype=torch.complex128, device=frequencies.device)
            return eye.expand(len(frequencies), size, size), multiplicity
        case ChannelScale():
            diagonal = map_.scale.repeat(multiplicity[0] * multiplicity[1]).to(torch.complex128)
            return torch.diag(diagonal).expand(len(frequencies), -1, -1), multiplicity
    raise unanswered("symbol", map_)


def convolution_symbol(
    convolution: Convolution, torus: Torus, frequencies: Tensor, multiplicity: Pair
) -> tuple[Tensor, Pair]:
    """The symbol of one convolution; groups fill the blocks of the diagonal."""
    blocks, out = grouped_symbol(convolution, torus, frequencies, multiplicity)
    if convolution.groups == 1:
        return blocks[:, 0].flatten(1, 3).flatten(2), out
    count, groups, *rows, c_out, r_1, r_2, c_in = blocks.shape
    full = blocks.new_zeros(count, *rows, groups, c_out, r_1, r_2, groups, c_in)
    for group in range(groups):
        full[:, :, :, group, :, :, :, group, :] = blocks[:, group]
    return full.flatten(1, 4).flatten(2), out


def grouped_symbol(
    convolution: Convolution, torus: Torus, frequencies: Tensor, multiplicity: Pair
) -> tuple[Tensor, Pair]:
    """The blocks (F, groups, r_out_1, r_out_2, C_out/groups, r_in_1, r_in_2, C_in/groups) of one convolution."""
    weight, groups = convolution.weight, convolution.groups
    waves = [_waves(convolution, torus, frequencies, multiplicity, axis) for axis in (0, 1)]
    phases = torch.einsum("fra,fsb->frsab", *waves).flatten(3).flatten(0, 2)  # (F r_1 r_2, k_1 k_2)
    kernel = weight.flatten(2).flatten(0, 1).T  # (k_1 k_2, C_out C_in/groups)
    fine = torch.complex(phases.real @ kernel, phases.imag @ kernel) / math.sqrt(math.prod(convolution.stride))
    r_1, r_2 = multiplicity
    c_out, c_in = weight.shape[0] // groups, weight.shape[1]
    fine = fine.reshape(len(frequencies), r_1, r_2, groups, c_out, c_in).movedim(3, 1)
    out = (r_1 // convolution.stride[0], r_2 // convolution.stride[1])
    if multiplicity == (1, 1):
        return fine.reshape(len(frequencies), groups, 1, 1, c_out, 1, 1, c_in), out
    blocks = fine.new_zeros(len(frequencies), groups, *out, c_out, r_1, r_2, c_in)
    for j in range(r_1):
        for k in range(r_2):
            blocks[:, :, j % out[0], k % out[1], :, j, k] = fine[:, :, j, k]
    return blocks, out


def _waves(convolution: Convolution, torus: Torus, frequencies: Tensor, multiplicity: Pair, axis: int) -> Tensor:
    """exp(2 pi i (f + phase) q / N), (F, r, k): f the fine frequencies, q the kernel's positions.

    The angle is reduced modulo one turn in integers, so its error does not grow with the position.
    """
    points, r, phase = torus.points[axis], multiplicity[axis], Fraction(torus.phase[axis])
    device = convolution.weight.device
    fine = frequencies[:, axis, None].to(device) + points * torch.arange(r, device=device)
    offsets = torch.arange(convolution.weight.shape[2 + axis], device=device) * convolution.dilation[axis]
    offsets = offsets - convolution.padding[axis][0]
    whole = phase.denominator * points * r
    turns = (fine * phase.denominator + phase.numerator)[:, :, None] * offsets % whole
    angle = turns.to(torch.float64) * (2 * math.pi / whole)
    return torch.polar(torch.ones_like(angle), angle)


def roundings(map_: LinearMap) -> int:
    """A count n such that each computed symbol is off by at most gamma_n * `absolute_norm(map_)` in norm.

    A wave is off by less than 16 units (angle, sine and cosine), two are multiplied, k_1 k_2 products are added; a
    complex product of matrices adds 4 (n + 2) for inner dimension n.
    """
    match map_:
        case Convolution():
            return 64 + 4 * map_.weight.shape[2] * map_.weight.shape[3] + map_.seen
        case TransposedConvolution():
            return roundings(map_.forward_map)
        case Scaled():
            return roundings(map_.map) + 4 + map_.seen
        case Sum():
            return max(roundings(term) for term in map_.terms) + 2 * len(map_.terms)
        case Composition():
            inner = sum(4 * (part.in_shape[0] * 64 + 2) for part in map_.parts[1:])
            return sum(roundings(part) for part in map_.parts) + inner
        case ChannelScale():
            return 4 + map_.seen
        case Identity():
            return 0
    raise unanswered("the rounding of a symbol", map_)
