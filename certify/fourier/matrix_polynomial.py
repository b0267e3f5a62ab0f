"""Matrix-valued trigonometric polynomials H(t) = sum_d H_d exp(i t d), the symbols of shift-invariant maps, with real
parts.

On a coarse torus, a signal with C channels at multiplicity (r_1, r_2) consists of r_1 r_2 C channels of the coarse
image, one image per residue (a permutation of the same numbers). A stride then needs no aliasing, and sums, products
and transposes of maps are sums, products and transposes of polynomials, computed once for all frequencies and tori.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from robustres.certify.fourier.torus import Torus
from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Sum, unanswered
from robustres.numerics import gamma

Lag = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Polynomial:
    """parts: lag -> real (m, n), or (groups, m, n) for the blocks of a block-diagonal polynomial; differentiable.

    The sum of the errors of all parts is at most gamma_roundings * magnitude, entry by entry; magnitude, of the same
    shape, is at or above the sum of the absolute values of the exact parts.
    """

    parts: dict[Lag, Tensor]
    magnitude: Tensor
    roundings: int = 0

    def __add__(self, other: Self) -> Self:
        parts = dict(self.parts)
        for lag, part in other.parts.items():
            parts[lag] = parts[lag] + part if lag in parts else part
        magnitude = (self.magnitude + other.magnitude) * (1 + gamma(1))
        return type(self)(parts, magnitude, max(self.roundings, other.roundings) + 1)


class MatrixPolynomial(_Polynomial):
    """A matrix polynomial by its parts, with a bound on their errors."""

    @classmethod
    def exact(cls, parts: dict[Lag, Tensor], seen: int = 0) -> "MatrixPolynomial":
        """A polynomial with exactly these parts, or with parts that have `seen` relative roundings in each entry."""
        total = torch.stack(list(parts.values())).detach().abs().sum(0)
        return cls(parts, total * (1 + gamma(len(parts) + 3 + seen)), seen)

    @property
    def is_constant_but_for_a_shift(self) -> bool:
        """Whether H(t) is one matrix times a phase, so that H H^* and H^* H are the same at every frequency."""
        return len(self.parts) == 1

    @property
    def constant(self) -> Tensor:
        """The matrix of a polynomial that is constant up to a shift."""
        (only,) = self.parts.values()
        return only

    def transposed(self) -> "MatrixPolynomial":
        """H(t)^*."""
        parts = {(-first, -second): part.mT for (first, second), part in self.parts.items()}
        return MatrixPolynomial(parts, self.magnitude.mT, self.roundings)

    def scaled(self, rows: Tensor | float = 1.0, columns: Tensor | float = 1.0) -> "MatrixPolynomial":
        """diag(rows) H diag(columns), all positive; rows have up to three roundings, columns one."""
        left = rows[:, None] if isinstance(rows, Tensor) else rows
        parts = {lag: left * part * columns for lag, part in self.parts.items()}
        return MatrixPolynomial(parts, left * self.magnitude * columns * (1 + gamma(8)), self.roundings + 6)

    def __matmul__(self, other: "MatrixPolynomial") -> "MatrixPolynomial":
        parts: dict[Lag, Tensor] = {}
        for (first, second), left in self.parts.items():
            for (third, fourth), right in other.parts.items():
                lag = (first + third, second + fourth)
                parts[lag] = parts[lag].add_(left @ right) if lag in parts else left @ right
        inner = self.magnitude.shape[1]
        return MatrixPolynomial(
            parts,
            (self.magnitude @ other.magnitude) * (1 + gamma(inner + 2)),
            self.roundings + other.roundings + inner + len(self.parts) + 1,
        )

    def at(self, torus: Torus, frequencies: Tensor) -> Tensor:
        """(F, m, n) complex, or (F groups, m, n): the values at coarse frequencies (F, 2)."""
        angle = turns(torus, frequencies, torch.tensor(list(self.parts), device=frequencies.device))
        stacked = torch.stack(list(self.parts.values())).flatten(1)
        return torch.complex(angle.cos() @ stacked, angle.sin() @ stacked).reshape(-1, *self.magnitude.shape[-2:])

    @property
    def wave_roundings(self) -> int:
        """Number of roundings in the result of `at`, relative to the magnitude; a wave has an error below 16 units."""
        return 2 * (self.roundings + len(self.parts) + 64)

    @property
    def error(self) -> float:
        """Upper bound on the spectral norm of the error of the values computed by `at`."""
        rows, columns = (float(self.magnitude.sum(axis).max()) for axis in (-1, -2))
        return gamma(self.wave_roundings + 8 + sum(self.magnitude.shape[-2:])) * math.sqrt(rows) * math.sqrt(columns)


class HermitianPolynomial(_Polynomial):
    """G(t) = A_0 + sum_d (A_d exp(i t d) + its conjugate transpose), over half of the lags; errors as above."""

    @classmethod
    def gram(cls, factor: MatrixPolynomial) -> "HermitianPolynomial":
        """H^* H."""
        parts: dict[Lag, Tensor] = {}
        for (first, second), left in factor.parts.items():
            for (third, fourth), right in factor.parts.items():
                lag = (third - first, fourth - second)
                if lag >= (0, 0):
                    parts[lag] = parts[lag].add_(left.mT @ right) if lag in parts else left.mT @ right
        inner = factor.magnitude.shape[-2]
        magnitude = (factor.magnitude.mT @ factor.magnitude) * (1 + gamma(inner + 2))
        return cls(parts, magnitude, 2 * factor.roundings + inner + len(factor.parts) + 1)

    @classmethod
    def twice_real(cls, polynomial: MatrixPolynomial) -> "HermitianPolynomial":
        """H + H^* of a square H."""
        parts: dict[Lag, Tensor] = {}
        for lag, part in polynomial.parts.items():
            mirrored = (-lag[0], -lag[1])
            place, value = (lag, part) if lag >= (0, 0) else (mirrored, part.mT)
            value = value + value.mT if lag == mirrored else value
            parts[place] = parts[place] + value if place in parts else value
        magnitude = (polynomial.magnitude + polynomial.magnitude.mT) * (1 + gamma(1))
        return cls(parts, magnitude, polynomial.roundings + 2)

    def scaled(self, sides: Tensor, factor: float = 1.0) -> "HermitianPolynomial":
        """factor diag(sides) G diag(sides), all positive; the factor has three roundings, sides have one."""
        outer = factor * sides[:, None] * sides
        parts = {lag: outer * part for lag, part in self.parts.items()}
        return HermitianPolynomial(parts, outer * self.magnitude * (1 + gamma(12)), self.roundings + 9)

    def at(self, torus: Torus, frequencies: Tensor) -> Tensor:
        """(F, n, n) complex Hermitian, or (F groups, n, n): the values at coarse frequencies (F, 2)."""
        lags, even, odd = self._waves
        angle = turns(torus, frequencies, lags)
        return torch.complex(angle.cos() @ even, angle.sin() @ odd).reshape(-1, *self.magnitude.shape[-2:])

    @cached_property
    def _waves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lags (D, 2), and the coefficients of the cosine and the sine of each (D, n n)."""
        lags = torch.tensor(list(self.parts), device=self.magnitude.device)
        stacked = torch.stack(list(self.parts.values()))
        even, odd = stacked + stacked.mT, stacked - stacked.mT
        even[(lags == 0).all(1)] *= 0.5  # lag 0 counts once
        return lags, even.flatten(1), odd.flatten(1)

    @property
    def error(self) -> float:
        """Upper bound on the spectral norm of the error of the values computed by `at`."""
        count = self.roundings + len(self.parts) + 64  # the error of a wave is below 16 units
        return gamma(2 * count) * float(self.magnitude.sum(-1).max()) * (1 + gamma(self.magnitude.shape[-1]))


def turns(torus: Torus, frequencies: Tensor, lags: Tensor) -> Tensor:
    """(F, D) angles t d of coarse frequencies (F, 2) and lags (D, 2), each axis reduced modulo one turn in integers."""
    total = torch.zeros(len(frequencies), len(lags), dtype=torch.float64, device=frequencies.device)
    for axis in (0, 1):
        phase = Fraction(torus.phase[axis])
        whole = phase.denominator * torus.points[axis]
        steps = (frequencies[:, axis, None] * phase.denominator + phase.numerator) * lags[:, axis] % whole
        total += steps.to(torch.float64) * (2 * math.pi / whole)
    return total


def polynomial(map_: LinearMap, multiplicity: Lag) -> tuple[MatrixPolynomial, Lag]:
    """The polynomial of a map with a `passage`, for a signal at that multiplicity, and its output's multiplicity."""
    match map_:
        case Identity():
            eye = torch.eye(math.prod(multiplicity) * map_.in_shape[0], dtype=torch.float64, device=map_.device)
            return MatrixPolynomial.exact({(0, 0): eye}), multiplicity
        case Diagonal():
            diagonal = torch.diag(map_.factors.repeat(math.prod(multiplicity)))
            return MatrixPolynomial.exact({(0, 0): diagonal}, map_.seen), multiplicity
        case Scaled():
            inner, out = polynomial(map_.map, multiplicity)
            parts = {lag: map_.factor * part for lag, part in inner.parts.items()}
            magnitude = abs(map_.factor) * inner.magnitude * (1 + gamma(3 + map_.seen))
            return MatrixPolynomial(parts, magnitude, inner.roundings + 1 + map_.seen), out
        case Composition():
            total, out = polynomial(map_.parts[0], multiplicity)
            for part in map_.parts[1:]:
                following, out = polynomial(part, out)
                total = following @ total
            return total, out
        case Sum():
            total, out = polynomial(map_.terms[0], multiplicity)
            for term in map_.terms[1:]:
                total = total + polynomial(term, multiplicity)[0]
            return total, out
        case Transposed(map=Convolution(stride=stride)):
            fine = (multiplicity[0] * stride[0], multiplicity[1] * stride[1])
            return polynomial(map_.map, fine)[0].transposed(), fine
        case Convolution():
            blocks, out = grouped_polynomial(map_, multiplicity)
            return (blocks if map_.groups == 1 else _ungrouped(blocks, map_, multiplicity, out)), out
    raise unanswered("polynomial", map_)


def grouped_polynomial(map_: Convolution, multiplicity: Lag) -> tuple[MatrixPolynomial, Lag]:
    """One polynomial per group, (groups, m, n), if there are several."""
    groups = map_.groups
    weight = map_.weight.reshape(groups, -1, *map_.weight.shape[1:])
    c_out, c_in = weight.shape[1:3]
    (r_1, r_2), (s_1, s_2) = multiplicity, map_.stride
    out = (r_1 // s_1, r_2 // s_2)
    parts: dict[Lag, Tensor] = {}
    for first in range(weight.shape[3]):
        for second in range(weight.shape[4]):
            tap = weight[..., first, second]
            reach_1 = first * map_.dilation[0] - map_.padding[0][0]
            reach_2 = second * map_.dilation[1] - map_.padding[1][0]
            for j in range(out[0]):
                for k in range(out[1]):
                    place_1, residue_1 = divmod(s_1 * j + reach_1, r_1)
                    place_2, residue_2 = divmod(s_2 * k + reach_2, r_2)
                    whole = parts.get((place_1, place_2))
                    if whole is None:
                        whole = weight.new_zeros(groups, math.prod(out) * c_out, r_1 * r_2 * c_in)
                        parts[place_1, place_2] = whole
                    row, column = (j * out[1] + k) * c_out, (residue_1 * r_2 + residue_2) * c_in
                    whole[:, row : row + c_out, column : column + c_in] = tap
    if groups == 1:
        parts = {lag: part[0] for lag, part in parts.items()}
    return MatrixPolynomial.exact(parts, map_.seen), out


def _ungrouped(blocks: MatrixPolynomial, map_: Convolution, multiplicity: Lag, out: Lag) -> MatrixPolynomial:
    """The block-diagonal matrices, with each channel at its position among all channels of a residue."""
    sides = [(math.prod(out), map_.weight.shape[0]), (math.prod(multiplicity), map_.in_shape[0])]
    order = [torch.arange(r * c).reshape(r, map_.groups, -1).transpose(0, 1).flatten().argsort() for r, c in sides]

    def whole(part: Tensor) -> Tensor:
        placed: Tensor = torch.block_diag(*part)  # type: ignore[no-untyped-call]
        return placed[order[0]][:, order[1]]

    parts = {lag: whole(part) for lag, part in blocks.parts.items()}
    return MatrixPolynomial(parts, whole(blocks.magnitude), blocks.roundings)
