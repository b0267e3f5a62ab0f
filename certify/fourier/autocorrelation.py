"""The Gram matrices of a convolution's symbol at every frequency, without the symbol: trigonometric polynomials.

With the symbol H(t) = sum_a K_a exp(i t a), the smaller of H H^H and H^H H is A_0 + sum_d (A_d exp(i t d) + transposed
conjugate), A_d = sum_a K_{a+d} K_a^T: real products that are computed once, after which a frequency costs a few
multiplications per entry and not a product of matrices. A stride is one on the image whose s_1 s_2 residues have become
channels (a permutation of the same numbers), so aliasing needs no care. Shifts of the kernel do not change norms.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.fourier.torus import Torus
from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.maps.rounding import absolute_norm
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.numerics import gamma


@dataclass(frozen=True)
class GramPolynomial:
    """G(t) = sum_d cos(t d) even_d + i sin(t d) odd_d, d over half of the lags.

    lags: (D, 2) integers. even, odd: (D, groups, n, n) symmetric and antisymmetric; n = `size`.
    error: a computed Gram matrix differs from the exact one by at most this much in spectral norm.
    exponent: the kernel was divided by 2^exponent before.
    """

    lags: Tensor
    even: Tensor
    odd: Tensor
    error: float
    exponent: int

    @property
    def size(self) -> int:
        """Rows of each Gram matrix."""
        return self.even.shape[-1]

    def grams(self, torus: Torus, frequencies: Tensor) -> Tensor:
        """(F groups, n, n) complex: the Gram matrices at coarse frequencies (F, 2) of a torus, any phase."""
        angle = self._turns(torus, frequencies, 0) + self._turns(torus, frequencies, 1)
        real, imaginary = (
            (waves @ parts.flatten(1)).reshape(-1, self.size, self.size)
            for waves, parts in ((angle.cos(), self.even), (angle.sin(), self.odd))
        )
        return torch.complex(real, imaginary)

    def _turns(self, torus: Torus, frequencies: Tensor, axis: int) -> Tensor:
        """(F, D) angles; reduced modulo one turn in integers, so that their error does not grow with the lag."""
        points, phase = torus.points[axis], Fraction(torus.phase[axis])
        whole = phase.denominator * points
        turns = (frequencies[:, axis, None] * phase.denominator + phase.numerator) * self.lags[:, axis] % whole
        return turns.to(torch.float64) * (2 * math.pi / whole)


def gram_polynomial(map_: Convolution | TransposedConvolution) -> GramPolynomial:
    """The polynomial of the smaller Gram matrix, for every torus on which the map's symbol stands."""
    convolution = map_.forward_map if isinstance(map_, TransposedConvolution) else map_
    largest = float(convolution.weight.abs().max()) if convolution.weight.numel() else 0.0
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    kernel, spacing = _unit_stride_kernel(convolution, times_power_of_two(convolution.weight, -exponent))
    if kernel.shape[1] > kernel.shape[2]:
        kernel = kernel.transpose(1, 2)
    lags, products = zip(*_products(kernel), strict=True)
    stacked = torch.stack(products)
    even, odd = stacked + stacked.mT, stacked - stacked.mT
    even[0] = 0.5 * even[0]  # lag 0 stands once
    roundings = 2 * (math.prod(kernel.shape[2:]) + len(lags) + 64 + convolution.seen)
    size = math.ldexp(absolute_norm(convolution), -exponent)
    return GramPolynomial(
        torch.tensor(lags, device=kernel.device) * torch.tensor(spacing, device=kernel.device),
        even,
        odd,
        gamma(roundings) * size * size * (1 + gamma(4)),
        exponent,
    )


def _unit_stride_kernel(convolution: Convolution, weight: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(groups, C_out/groups, s_1 s_2 C_in/groups, q_1, q_2), and how far apart its elements stand per axis."""
    places, residues, spacings = [], [], []
    for axis in (0, 1):
        stride = convolution.stride[axis]
        position = torch.arange(weight.shape[2 + axis]) * convolution.dilation[axis]
        place = position // stride
        spacing = max(1, math.gcd(*place.tolist()))
        places.append(place // spacing)
        residues.append(position % stride)
        spacings.append(spacing)
    groups, (c_out, c_in) = convolution.groups, weight.shape[:2]
    sizes = [convolution.stride[0], int(places[0].max()) + 1, convolution.stride[1], int(places[1].max()) + 1]
    spread = weight.new_zeros(*sizes, c_out, c_in)
    spread[residues[0][:, None], places[0][:, None], residues[1], places[1]] = weight.movedim((2, 3), (0, 1))
    kernel = spread.permute(4, 0, 2, 5, 1, 3).reshape(groups, c_out // groups, -1, sizes[1], sizes[3])
    return kernel, (spacings[0], spacings[1])


def _products(kernel: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each lag of one half and its A_d (groups, n, n); the lag 0 first."""
    groups, n, _, rows, columns = kernel.shape
    for first in range(rows):
        for second in range(0 if first == 0 else 1 - columns, columns):
            ahead = kernel[..., first:, max(second, 0) : columns + min(second, 0)]
            behind = kernel[..., : rows - first, max(-second, 0) : columns - max(second, 0)]
            yield (first, second), ahead.reshape(groups, n, -1) @ behind.reshape(groups, n, -1).mT
