"""The norm of a convolution through its symbol: max over the frequencies of a torus, an upper bound by embedding."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.fourier.autocorrelation import GramPolynomial, gram_polynomial
from robustres.certify.fourier.symbol import coarse_frequencies, grouped_symbol, roundings, symbol
from robustres.certify.fourier.torus import HALF, Embedding, Torus, embed
from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import UNDERFLOW, absolute_norm
from robustres.certify.proof.largest_singular_value import MatrixMethod, largest_eigenvalue, largest_norm
from robustres.numerics import gamma, rounded_up

CHUNK_BYTES = 64 * 2**20


def frequency_bound(
    map_: LinearMap,
    *,
    matrix_method: MatrixMethod = "cholesky",
    seconds: float | None = None,
    enlargements: int = 1,
    phases: Sequence[Fraction] = (Fraction(0), HALF),
) -> float | None:
    """A deterministic upper bound of the norm of a zero-padded or circular shift-invariant map.

    Every torus is a valid bound by itself; the smallest of those that fit into `seconds` of a nominal core (always at
    least one) is returned. Returns None where the map has no symbol: other paddings, reshapes, cropped images inside.
    """
    embedding = embed([[map_]])
    if embedding is None:
        return None
    tori = embedding.tori(enlargements=enlargements, phases=phases)
    if seconds is not None:
        tori = tori[: max(1, int(seconds / nominal_seconds(map_, embedding)))]
    polynomial = _polynomial(map_, matrix_method)
    smallest = math.inf
    for torus in tori:
        if polynomial is None:
            value = torus_bound(map_, embedding, torus, matrix_method=matrix_method, stop_above=smallest)
        else:
            value = polynomial_bound(polynomial, torus, stop_above=smallest)
        smallest = min(smallest, value)
    return smallest


def _polynomial(map_: LinearMap, matrix_method: MatrixMethod) -> GramPolynomial | None:
    """The Gram matrices as polynomials, where the map is one convolution and the method asks for no other matrices."""
    if matrix_method != "cholesky" or not isinstance(map_, (Convolution, TransposedConvolution)):
        return None
    return gram_polynomial(map_)


def nominal_seconds(map_: LinearMap, embedding: Embedding) -> float:
    """Time of one torus on a core of 2e10 operations per second: load does not change which tori are tried."""
    groups = map_.groups if isinstance(map_, (Convolution, TransposedConvolution)) else 1
    rows, columns = map_.out_shape[0] / groups, map_.in_shape[0] * math.prod(embedding.multiplicity) / groups
    small, large = min(rows, columns), max(rows, columns)
    frequencies = groups * math.prod(embedding.points) / 2
    if isinstance(map_, (Convolution, TransposedConvolution)):
        return frequencies * (2e-5 + 4e-9 * small**2 * 2 * math.prod(map_.weight.shape[2:]) + small**3 / 1e10)
    return frequencies * (2e-5 + 8 * (small**2 * large + small**3) / 2e10)


def polynomial_bound(polynomial: GramPolynomial, torus: Torus, *, stop_above: float = math.inf) -> float:
    """The square root of the largest eigenvalue of the Gram matrices on one torus, rounding included.

    Infinite once above `stop_above`.
    """
    limit = math.ldexp(stop_above, -polynomial.exponent) if stop_above < math.inf else math.inf
    largest = 0.0
    frequencies = coarse_frequencies(torus).to(polynomial.lags.device)
    per_chunk = max(1, CHUNK_BYTES // (16 * polynomial.even[0].numel()))
    for chunk in torch.split(frequencies, per_chunk):
        largest = largest_eigenvalue(
            polynomial.grams(torus, chunk), error=polynomial.error, at_least=largest, stop_above=limit * limit
        )
        if largest == math.inf:
            return math.inf
    return rounded_up(math.ldexp(rounded_up(math.sqrt(largest), 8), polynomial.exponent), 1)


def torus_bound(
    map_: LinearMap,
    embedding: Embedding,
    torus: Torus,
    *,
    matrix_method: MatrixMethod = "cholesky",
    stop_above: float = math.inf,
) -> float:
    """max over the frequencies of one torus of the symbol's norm, plus rounding; infinite once above `stop_above`."""
    slack = gamma(roundings(map_)) * absolute_norm(map_) + UNDERFLOW
    largest = 0.0
    for matrices in symbol_chunks(map_, embedding, torus):
        largest = largest_norm(matrices, method=matrix_method, at_least=largest)
        if largest > stop_above:
            return math.inf
    return rounded_up(largest + slack, 8)


def symbol_chunks(map_: LinearMap, embedding: Embedding, torus: Torus) -> Iterator[Tensor]:
    """The symbol in pieces of bounded memory; the groups of a grouped convolution come as matrices of their own."""
    frequencies = coarse_frequencies(torus).to(map_.device)
    entries = map_.in_shape[0] * map_.out_shape[0] * math.prod(embedding.multiplicity)
    groups = map_.groups if isinstance(map_, Convolution) else 1
    per_chunk = max(1, CHUNK_BYTES * groups // (16 * entries))
    for chunk in torch.split(frequencies, per_chunk):
        if isinstance(map_, Convolution):
            blocks, _ = grouped_symbol(map_, torus, chunk, embedding.multiplicity)
            yield blocks.flatten(5).flatten(2, 4).flatten(0, 1)
        else:
            yield symbol(map_, torus, chunk, embedding.multiplicity)[0]
