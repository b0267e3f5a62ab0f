"""The norm of a shift-invariant map, bounded by the maximum over the frequencies of a torus in which it is embedded."""

import math

import torch

from robustres.certify.fourier.matrix_polynomial import (
    HermitianPolynomial,
    MatrixPolynomial,
    grouped_polynomial,
    polynomial,
)
from robustres.certify.fourier.torus import Embedding, Torus, coarse_frequencies, embed
from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import UNDERFLOW
from robustres.certify.proof.largest_singular_value import largest_eigenvalue
from robustres.numerics import rounded_up

CHUNK_BYTES = 64 * 2**20


def frequency_bound(map_: LinearMap, *, seconds: float | None = None) -> float | None:
    """A deterministic upper bound on the norm of a zero-padded or circular shift-invariant map, `normalised`.

    Every torus gives a valid bound; the smallest bound of the tori that fit into `seconds` of a nominal core (always at
    least one) is returned. Returns None if the map is not shift-invariant: other paddings, reshapes, images cropped
    inside.
    """
    embedding = embed(map_)
    if embedding is None:
        return None
    tori = embedding.tori()
    if seconds is not None:
        tori = tori[: max(1, int(seconds / nominal_seconds(map_, embedding)))]
    gram = HermitianPolynomial.gram(narrow_polynomial(map_, embedding))
    smallest = math.inf
    for torus in tori:
        smallest = min(smallest, gram_bound(gram, torus, stop_above=smallest))
    return smallest


def narrow_polynomial(map_: LinearMap, embedding: Embedding) -> MatrixPolynomial:
    """The matrices of the map, or their transposes, no wider than high; one per group for a single convolution."""
    multiplicity, inner = embedding.multiplicity, map_
    if isinstance(map_, Transposed) and isinstance(map_.map, Convolution):
        inner, stride = map_.map, map_.map.stride
        multiplicity = (multiplicity[0] * stride[0], multiplicity[1] * stride[1])
    question = grouped_polynomial if isinstance(inner, Convolution) else polynomial
    found = question(inner, multiplicity)[0]  # type: ignore[arg-type]
    rows, columns = found.magnitude.shape[-2:]
    return found if columns <= rows else found.transposed()


def nominal_seconds(map_: LinearMap, embedding: Embedding) -> float:
    """Time for one torus on a core of 2e10 operations per second; the choice of tori is independent of the load."""
    inner = map_.map if isinstance(map_, Transposed) else map_
    groups = inner.groups if isinstance(inner, Convolution) else 1
    rows, columns = map_.out_shape[0] / groups, map_.in_shape[0] * math.prod(embedding.multiplicity) / groups
    small, large = min(rows, columns), max(rows, columns)
    frequencies = groups * math.prod(embedding.points) / 2
    if isinstance(inner, Convolution):
        return frequencies * (2e-5 + 4e-9 * small**2 * 2 * math.prod(inner.weight.shape[2:]) + small**3 / 1e10)
    return frequencies * (2e-5 + 8 * (small**2 * large + small**3) / 2e10)


def gram_bound(gram: HermitianPolynomial, torus: Torus, *, stop_above: float = math.inf) -> float:
    """Upper bound on the square root of the largest eigenvalue of the Gram matrices on one torus, including rounding.

    Infinite as soon as it exceeds `stop_above`.
    """
    largest = 0.0
    frequencies = coarse_frequencies(torus).to(gram.magnitude.device)
    for chunk in torch.split(frequencies, max(1, CHUNK_BYTES // (16 * gram.magnitude.numel()))):
        largest = largest_eigenvalue(
            gram.at(torus, chunk), error=gram.error, at_least=largest, stop_above=stop_above * stop_above
        )
        if largest == math.inf:
            return math.inf
    return rounded_up(math.sqrt(largest + UNDERFLOW), 8)
