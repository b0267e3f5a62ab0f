"""The inequality of the joint bound after eliminating the input and a pointwise first layer: the norm of one kernel.

With multipliers T, a block S d + V u with u = phi(W d) satisfies |output|^2 <= lambda |d|^2 if

    N = 2T - T W W^* T / lambda - lambda E^* G E >= 0,    E = V + S W^* T / lambda,    G = (lambda - S S^*)^-1,

the Schur complement of the input d. If S is a matrix times a phase (identity, scaled identity, 1x1 convolution of
any stride, pooling over disjoint windows), G is one real matrix for all frequencies, and N >= 0 means that the stacked
kernel (W^* T^(1/2) / sqrt(2 lambda), sqrt(lambda / 2) G^(1/2) E T^(-1/2)) has norm at most 1. This is a polynomial of
the hidden width, computed once per (T, lambda), whereas the full form includes the input besides all hidden layers.

For two hidden layers u_2 = phi(U u_1), u_1 = phi(W d), where W is also a matrix times a phase (bottlenecks, and blocks
that begin with an activation), u_1 has the constant matrix D = 2T_1 - T_1 (W W^* + W S^* G S W^*) T_1 / lambda and is
eliminated in the same way, which gives N = 2T_2 - lambda V^* G V - F^* D^-1 F with F = U^* T_2 + T_1 W S^* G V.

T enters as the exact square of its computed root, and G and D^-1 are replaced by proved upper bounds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.fourier.matrix_polynomial import HermitianPolynomial, Lag, MatrixPolynomial, polynomial
from robustres.certify.maps.sector import GroupSort
from robustres.numerics import gamma


@dataclass(frozen=True, eq=False)
class Above:
    """factor * root^T root, an upper bound of the inverse of a matrix. A root of None denotes the identity."""

    factor: float
    root: Tensor | None = None

    def half(self, right: MatrixPolynomial) -> MatrixPolynomial:
        """root H."""
        if self.root is None:
            return right
        return MatrixPolynomial.exact({(0, 0): self.root}) @ right


class ReducedBlock:
    """Shortcut and layers as polynomials. The widths of the slopes are absorbed into the layers after them."""

    def __init__(self, shortcut: MatrixPolynomial, layers: list[MatrixPolynomial], channels: list[int]) -> None:
        self.shortcut, self.layers, self.channels = shortcut, layers, channels
        self.inner = layers[0].transposed()  # W^*, of the input
        self.crossing = shortcut @ self.inner  # S W^*
        self.inner_gram = HermitianPolynomial.gram(self.inner)
        self._scale = _scale_of_identity(shortcut)
        self._products: tuple[float, tuple[HermitianPolynomial, MatrixPolynomial, HermitianPolynomial]] | None = None

    @property
    def width(self) -> int:
        """Number of rows of the matrix at each frequency."""
        return self.layers[-1].magnitude.shape[1]

    @property
    def scalar_shortcut(self) -> bool:
        """Whether the shortcut is a number times a phase."""
        return self._scale is not None

    @property
    def device(self) -> torch.device:
        """The device of the polynomials."""
        return self.shortcut.magnitude.device

    def roots(self, values: Tensor) -> tuple[Tensor, ...]:
        """T^(1/2) of each hidden layer, repeated over the residues."""
        parts = torch.split(values.sqrt(), self.channels)
        widths = [layer.magnitude.shape[0] for layer in self.layers]
        return tuple(part.repeat(width // len(part)) for part, width in zip(parts, widths, strict=False))

    def gram(self, values: Tensor, value: float) -> HermitianPolynomial | None:
        """The polynomial that proves |output|^2 <= value |d|^2 if it is at most 1 on a torus, for one multiplier per
        channel. None if the value is too small."""
        inverse = self._resolvent(value)
        if inverse is None or not bool((values > 0).all()):
            return None
        roots = self.roots(values)
        if len(roots) == 1:
            return self._one_layer(roots, value, inverse)
        return self._two_layers(roots, value, inverse)

    def _one_layer(self, roots: tuple[Tensor, ...], value: float, inverse: Above) -> HermitianPolynomial:
        (root,) = roots
        outer, mixed, crossed = self._outer_products(value, inverse)
        factor = inverse.factor * value / 2
        gram = self.inner_gram.scaled(root, 0.5 / value) + outer.scaled(1 / root, factor)
        mixed = mixed.scaled(1 / root, root * (factor / value))
        return gram + HermitianPolynomial.twice_real(mixed) + crossed.scaled(root, factor / value**2)

    def _outer_products(
        self, value: float, inverse: Above
    ) -> tuple[HermitianPolynomial, MatrixPolynomial, HermitianPolynomial]:
        """V^* R^T R V, V^* R^T R C and C^* R^T R C for C = S W^* and the root R; the most recent ones are cached."""
        key = 0.0 if inverse.root is None else value
        if self._products is None or self._products[0] != key:
            outer, crossing = inverse.half(self.layers[-1]), inverse.half(self.crossing)
            gram = HermitianPolynomial.gram
            self._products = key, (gram(outer), outer.transposed() @ crossing, gram(crossing))
        return self._products[1]

    def _two_layers(self, roots: tuple[Tensor, ...], value: float, inverse: Above) -> HermitianPolynomial | None:
        first, last = roots
        outer, mixed, crossed = self._outer_products(value, inverse)
        inner = self.inner_gram.scaled(first, 1 / value) + crossed.scaled(first, inverse.factor / value)
        identity = torch.eye(len(first), dtype=torch.float64, device=first.device)
        matrix = 2 * identity - inner.parts[0, 0]
        magnitude = 2 * identity + inner.magnitude
        inner_inverse = inverse_from_above(matrix, magnitude, inner.roundings + 2)
        if inner_inverse is None:
            return None
        coupling = mixed.transposed().scaled(first * inverse.factor, 1 / last)
        coupling = coupling + self.layers[1].transposed().scaled(1 / first, last)
        ones = torch.ones_like(last)
        eliminated = HermitianPolynomial.gram(inner_inverse.half(coupling)).scaled(ones, inner_inverse.factor / 2)
        return outer.scaled(1 / last, inverse.factor * value / 2) + eliminated

    def _resolvent(self, value: float) -> Above | None:
        """Upper bound of (lambda - S S^*)^-1."""
        if self._scale is not None:
            square = self._scale**2
            gap = value - square - gamma(4 + 2 * self.shortcut.roundings) * (value + square)
            return Above((1 / gap) * (1 + gamma(2))) if gap > 0 else None
        matrix = self.shortcut.constant
        identity = value * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
        magnitude = identity + self.shortcut.magnitude @ self.shortcut.magnitude.mT
        roundings = 2 * self.shortcut.roundings + matrix.shape[1] + 4
        return inverse_from_above(identity - matrix @ matrix.mT, magnitude, roundings)


def reduced_block(block: ResidualBlock, multiplicity: Lag) -> ReducedBlock | None:
    """The block in this form; None if some slopes are not [0, b] or some part does not have the required form."""
    if len(block.slopes) > 2 or any(isinstance(s, GroupSort) or s[0] != 0 or s[1] <= 0 for s in block.slopes):
        return None
    shortcut, _ = polynomial(block.shortcut, multiplicity)
    if not shortcut.is_constant_but_for_a_shift:
        return None
    layers: list[MatrixPolynomial] = []
    for index, layer in enumerate(block.layers):
        found, multiplicity = polynomial(layer, multiplicity)
        width = 1.0 if index == 0 else float(block.slopes[index - 1][1])  # type: ignore[index]
        layers.append(found if width == 1 else found.scaled(width))
    if len(layers) == 3 and not layers[0].is_constant_but_for_a_shift:
        return None
    return ReducedBlock(shortcut, layers, [layer.out_shape[0] for layer in block.layers[:-1]])


def inverse_from_above(matrix: Tensor, magnitude: Tensor, roundings: int) -> Above | None:
    """Upper bound factor * root^T root of the inverse of the exact symmetric matrix; None if none is proved.

    With R the inverse of a Cholesky factor, however computed, and |R M R^T - I| <= e < 1 for the exact M,
    R M R^T >= (1 - e) I, hence M is definite and M^-1 <= R^T R / (1 - e).

    The stored matrix is off by at most gamma_roundings * magnitude, entry by entry.
    """
    size = len(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0 or not bool(torch.isfinite(factor).all()):
        return None
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    root = torch.linalg.solve_triangular(factor, identity, upper=False)
    residual = float(torch.linalg.matrix_norm(root @ matrix @ root.mT - identity))
    spread = float(torch.linalg.matrix_norm(root)) ** 2 * float(magnitude.sum(1).max())
    error = residual + gamma(roundings + 4 * size + 16) * spread
    return Above((1 / (1 - error)) * (1 + gamma(8)), root) if error < 0.5 else None


def _scale_of_identity(shortcut: MatrixPolynomial) -> float | None:
    """s if the shortcut is s I times a phase, otherwise None."""
    matrix = shortcut.constant
    if matrix.shape[0] != matrix.shape[1]:
        return None
    scale = float(matrix[0, 0])
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return scale if torch.equal(matrix, scale * identity) else None
