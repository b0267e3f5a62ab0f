"""Norms by matrix-vector products only, with a guarantee: Lanczos iteration from a random start.

Let A be the symmetric positive semidefinite matrix C^T C or C C^T of the smaller dimension n, v a start vector that is
uniform on the unit sphere, and gamma its component along an eigenvector of lambda_max.

The density of gamma on [-1, 1] is proportional to (1 - t^2)^((n-3)/2); for n >= 3 it is largest at 0, with the value
Gamma(n/2) / (sqrt(pi) Gamma((n-1)/2)) < sqrt(n / (2 pi)), because Gamma(x + 1/2) <= sqrt(x) Gamma(x) with
x = (n - 1)/2. Hence P(|gamma| < d) < d sqrt(2 n / pi), and d = delta sqrt(pi / (2 n)) fails with probability < delta.

Lanczos (van Dorsselaer, Hochstenbach and van der Vorst 2000, Computing probabilistic bounds for extreme eigenvalues
of symmetric matrices with the Lanczos method, SIAM J. Matrix Anal. Appl. 22): with full re-orthogonalisation the
(k+1)-th Lanczos vector is p_k(A) v with p_k the polynomial of the three-term recurrence of this run. It is a unit
vector, so |gamma| |p_k(lambda_max)| <= 1. Beyond its largest root, a Ritz value, p_k grows: lambda_max is at most the
t there with p_k(t) = 1/d, unless |gamma| < d.
"""

import math

import torch

from robustres.certify.maps.convolution import Transposed
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import UNDERFLOW, absolute_norm, product_error
from robustres.certify.norms.power_iteration import uniform_on_sphere
from robustres.errors import InputError
from robustres.numerics import UNIT_ROUNDOFF, gamma, rounded_up

SMALLEST_SPHERE = 3  # the density of one component is bounded in three or more dimensions


def lanczos_bound(
    map_: LinearMap, *, delta: float = 1e-12, steps: int = 100, generator: torch.Generator | None = None
) -> float:
    """Upper bound on the norm with probability at least 1 - delta over the start vector.

    steps: number of products with each of C and C^T; the same number of vectors of the smaller dimension is stored.
    generator: of the start vector; by default seeded by the operating system, since a map could be built to mislead a
        start that is known beforehand.
    """
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    narrow = map_ if map_.in_size <= map_.out_size else Transposed(map_)
    size = narrow.in_size
    if size < SMALLEST_SPHERE:
        raise InputError(f"a random start needs at least 3 dimensions, got {size}; use method 'dense'")
    vector = uniform_on_sphere(narrow.in_shape, map_.device, generator).flatten()
    basis, diagonal, off_diagonal = [vector], [], []
    for _ in range(min(steps, size)):
        image = narrow.adjoint(narrow(basis[-1].reshape(1, *narrow.in_shape))).flatten()
        diagonal.append(float(image @ basis[-1]))
        kept = torch.stack(basis)
        for _ in range(2):
            image = image - kept.T @ (kept @ image)
        noise = max(8 * UNIT_ROUNDOFF[torch.float64] * max(diagonal), UNDERFLOW)
        off_diagonal.append(max(float(torch.linalg.vector_norm(image)), noise))  # a larger value only loosens the bound
        if off_diagonal[-1] <= noise:
            break
        basis.append(image / off_diagonal[-1])
    threshold = -math.log(_smallest_component(size, delta))
    eigenvalue = _root_beyond(diagonal, off_diagonal, threshold) if max(diagonal) > 0 else 0.0
    return _with_rounding(map_, size, len(diagonal), eigenvalue)


def _smallest_component(size: int, delta: float) -> float:
    """A number d with P(|gamma| < d) < delta."""
    return delta * math.sqrt(math.pi / (2 * size))


def _log_polynomial(t: float, diagonal: list[float], off_diagonal: list[float]) -> float:
    """log p_k(t) for t beyond every root: b_k p_k = (t - a_k) p_{k-1} - b_{k-1} p_{k-2}, as ratios p_j / p_{j-1}."""
    logarithm, ratio = 0.0, math.inf
    for j, (a, b) in enumerate(zip(diagonal, off_diagonal, strict=True)):
        ratio = (t - a - (off_diagonal[j - 1] / ratio if j else 0.0)) / b
        if ratio <= 0:
            return -math.inf
        logarithm += math.log(ratio)
    return logarithm


def _root_beyond(diagonal: list[float], off_diagonal: list[float], threshold: float) -> float:
    """The t above the largest Ritz value at which log p_k(t) reaches the threshold, rounded up, by bisection."""
    ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    inner = torch.tensor(off_diagonal[:-1], dtype=torch.float64)
    ritz = ritz + torch.diag(inner, 1) + torch.diag(inner, -1)
    low = float(torch.linalg.eigvalsh(ritz)[-1])
    high = low + max(off_diagonal)
    while _log_polynomial(high, diagonal, off_diagonal) < threshold:
        high = low + 2 * (high - low)
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _log_polynomial(middle, diagonal, off_diagonal) < threshold:
            low = middle
        else:
            high = middle
    return high


def _with_rounding(map_: LinearMap, size: int, steps: int, eigenvalue: float) -> float:
    """sqrt(eigenvalue) plus the rounding errors of the products, the orthogonalisation and the recurrence.

    With full re-orthogonalisation the run is that of a matrix A + E with |E| of the order of steps times the error of
    one product and one orthogonalisation; 8 times that is added to the eigenvalue. The dependence of E on the start is
    not modelled; together with the failure probability, this is why such a bound is never called deterministic.
    """
    norm = math.sqrt(max(eigenvalue, 0.0))
    error = 2 * product_error(map_) * absolute_norm(map_) + gamma(4 * size + 100) * norm * norm
    return rounded_up(math.sqrt(eigenvalue + 8 * steps * error + UNDERFLOW), 16)
