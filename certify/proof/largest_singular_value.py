"""Upper bounds on the largest singular value of a batch of matrices, including rounding."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.proof.cholesky_proof import definiteness_slack, proved_definite
from robustres.numerics import gamma, rounded_up

ALWAYS_EXACT = 4  # matrices up to this size are all decomposed
GRAM_BLOCK = 256  # columns of a block of a Gram matrix, of which one triangle is computed
WIDE = 1024  # from this size on the largest eigenvalue of a single matrix is proved from its Ritz value
WIDE_STEPS, WIDE_MARGINS = 40, (1e-6, 1e-5, 1e-4, 1e-3)
SAMPLED = 32  # number of matrices among which the first candidate for the largest eigenvalue is chosen

MatrixMethod = Literal["cholesky", "svd"]


def largest_norm(matrices: Tensor, *, method: MatrixMethod = "cholesky") -> float:
    """A number at or above sigma(H_f) for every stored matrix of the batch (F, m, n).

    cholesky (the default): eigenvalues of the few decisive matrices, and a factorisation to prove that the others are
    smaller. svd: singular values of every matrix.
    """
    with torch.no_grad():
        largest = float(real_parts(matrices).abs().max()) if matrices.numel() else 0.0
        if largest == 0:
            return 0.0
        if not math.isfinite(largest):
            return math.inf
        scale = math.frexp(largest)[1]
        scaled = times_power_of_two(matrices, -scale)
        unit = _by_svd(scaled) if method == "svd" else _by_dismissal(scaled)
    return math.nextafter(math.ldexp(unit, scale), math.inf)


def times_power_of_two(matrices: Tensor, exponent: int) -> Tensor:
    """The matrices times 2^exponent, exactly, in two factors so that neither overflows."""
    half = exponent // 2
    return matrices * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def real_parts(values: Tensor) -> Tensor:
    """The values, or their real and imaginary parts as one more axis, which torch handles much faster."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def frobenius_norms(matrices: Tensor) -> Tensor:
    """The Frobenius norm of every matrix of a batch (F, m, n)."""
    norms: Tensor = torch.linalg.vector_norm(real_parts(matrices).flatten(1), dim=1)
    return norms


def gram(rows: Tensor) -> Tensor:
    """rows^H rows (F, n, n) of rows (F, R, n); of two blocks that mirror each other, one is computed."""
    width = rows.shape[-1]
    if width < 2 * GRAM_BLOCK:
        return rows.mH @ rows
    product = rows.new_empty(len(rows), width, width)
    for start in range(0, width, GRAM_BLOCK):
        stop = start + GRAM_BLOCK
        product[:, start:stop, start:] = rows[:, :, start:stop].mH @ rows[:, :, start:]
        product[:, stop:, start:stop] = product[:, start:stop, stop:].mH
    return product


def _gram_error(matrices: Tensor) -> float:
    """Bound on the error of the largest eigenvalue of the computed Gram matrix."""
    frobenius = float(frobenius_norms(matrices).max())
    return gamma(4 * (max(matrices.shape[-2:]) + 2)) * frobenius * frobenius * (1 + gamma(matrices[0].numel() + 8))


def _top_eigenvalue(hermitian: Tensor) -> float:
    """Upper bound on the largest eigenvalue. The solver is backward stable; its error is bounded by 10 n u |A|_F."""
    values = torch.linalg.eigvalsh(hermitian)[..., -1]
    frobenius = frobenius_norms(hermitian)
    return float((values + gamma(40 * hermitian.shape[-1]) * frobenius).max())


def _top_of_one(hermitian: Tensor, error: float) -> float:
    """Upper bound on the largest eigenvalue of every matrix within `error` of one (n, n)."""
    wide = len(hermitian) >= WIDE
    proved = proved_top(hermitian, error, margins=WIDE_MARGINS, steps=WIDE_STEPS) if wide else math.inf
    return proved if math.isfinite(proved) else _top_eigenvalue(hermitian[None]) + 4 * error


def _by_svd(matrices: Tensor) -> float:
    values = torch.linalg.svdvals(matrices)[..., 0]
    error = gamma(40 * max(matrices.shape[-2:])) * float(frobenius_norms(matrices).max())
    return rounded_up(float(values.max()) + error, 8)


def _by_dismissal(matrices: Tensor) -> float:
    grams = gram(matrices.mH if matrices.shape[-2] <= matrices.shape[-1] else matrices)
    return rounded_up(math.sqrt(largest_eigenvalue(grams, error=_gram_error(matrices))), 8)


def largest_eigenvalue(
    hermitian: Tensor, *, error: float = 0.0, at_least: float = 0.0, stop_above: float = math.inf
) -> float:
    """A number at or above max(at_least, lambda_max) of every matrix of a positive semidefinite batch (F, n, n).

    error: the true matrices may differ from the stored ones by this much in spectral norm.
    stop_above: return infinity as soon as some eigenvalue may be larger.

    `accepted` is raised to the largest eigenvalue of the most promising matrix until a factorisation proves all others
    smaller; the relative tolerance is the loss of the proof itself, so that ties are dismissed as well.
    """
    size = hermitian.shape[-1]
    if size <= ALWAYS_EXACT:
        return max(at_least, _top_eigenvalue(hermitian) + error)
    tolerance = 1 + 8 * size * definiteness_slack(size)
    accepted = at_least
    open_ = hermitian if accepted == 0 else hermitian[~proved_below(hermitian, accepted, error)]
    stride = max(1, len(open_) // SAMPLED)
    while len(open_):
        best = stride * int(rayleigh_quotients(open_[::stride]).argmax())
        stride = 1
        accepted = max(accepted, _top_of_one(open_[best], error) * tolerance)
        if accepted > stop_above:
            return math.inf
        dismissed = proved_below(open_, accepted, error)
        dismissed[best] = True
        open_ = open_[~dismissed]
    return accepted


def proved_below(hermitian: Tensor, value: float, error: float) -> Tensor:
    """(F,) bool: True if no eigenvalue of a matrix within `error` of the stored one exceeds `value`."""
    shifted = -hermitian
    shifted.diagonal(dim1=-2, dim2=-1).add_(value)
    return proved_definite(shifted, error=error + 4 * 2.0**-53 * value)


def rayleigh_quotients(grams: Tensor) -> Tensor:
    """(F,): cheap lower estimates of the largest eigenvalues, by power iteration from the largest column."""
    quotient = grams.new_zeros(len(grams), dtype=torch.float64)
    column = grams.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    vector = grams.gather(-1, column[:, None, None].expand(-1, grams.shape[-2], 1))
    for _ in range(8):
        vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp_min(1e-300)
        image = grams @ vector
        quotient = (vector.conj() * image).sum((-2, -1)).real
        vector = image
    return quotient


def ritz_values(hermitian: Tensor, *, steps: int = 30) -> Tensor:
    """(F,): lower estimates of the largest eigenvalues of (F, n, n), by re-orthogonalised Lanczos."""
    count, size = hermitian.shape[0], hermitian.shape[-1]
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, size, 1, dtype=torch.float64, generator=generator).to(hermitian)
    vector = (vector / torch.linalg.vector_norm(vector)).expand(count, -1, -1)
    basis, images = vector, hermitian @ vector
    noise = 1e-12 * torch.linalg.vector_norm(images, dim=-2, keepdim=True)  # below it the Krylov space is exhausted
    for _ in range(min(steps, size) - 1):
        image = images[..., -1:]
        for _ in range(2):
            image = image - basis @ (basis.mH @ image)
        length = torch.linalg.vector_norm(image, dim=-2, keepdim=True)
        vector = image / torch.where(length > noise, length, torch.inf)
        basis = torch.cat((basis, vector), dim=-1)
        images = torch.cat((images, hermitian @ vector), dim=-1)
    values: Tensor = torch.linalg.eigvalsh(basis.mH @ images)
    return values[:, -1]


def proved_top(hermitian: Tensor, error: float, *, margins: Sequence[float], steps: int) -> float:
    """Upper bound on the largest eigenvalue of a positive semidefinite matrix (n, n): its Ritz value plus the first of
    the relative margins that is proved, else infinity. error: as in `proved_below`."""
    if error == 0 and not bool(hermitian.any()):
        return 0.0
    value = float(ritz_values(hermitian[None], steps=steps))
    tried = (value * (1 + margin) for margin in margins)
    return next((top for top in tried if bool(proved_below(hermitian[None], top, error))), math.inf)
