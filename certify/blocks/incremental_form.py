"""The inequality behind the joint bound, for a batch of frequencies (or one dense matrix) and any number of layers.

Two inputs at difference d give, in every hidden unit, a normalised increment u with u T (z - u) >= 0 for each T >= 0
(`sector`), where z = z_input d + z_hidden u (strictly triangular), and the outputs differ by
c_input d + c_hidden u. If the Hermitian matrix

    Q = [ lambda - c_input^H c_input     -B ]        M = 2T - T z_hidden - z_hidden^H T - c_hidden^H c_hidden
        [ -B^H                            M ],       B = c_input^H c_hidden + z_input^H T

is positive semidefinite, then |output|^2 <= lambda |d|^2: add 2 u T (z - u) >= 0 to the right side and expand. For one
hidden layer this is lambda_max(S^T S + B (2T - V^T V)^-1 B^T) of the Schur complement. T is chosen by any heuristic
(`gain` is what it minimises) and proved afterwards (`proved`), so no semidefinite solver is needed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.norms.ritz_pair import top_ritz_pair
from robustres.certify.proof.cholesky_proof import proved_definite
from robustres.numerics import gamma

SMOOTHED = 4  # largest eigenvalues per frequency in the smooth maximum
EXACT_SIDE = 96  # larger matrices: the top eigenvalue is estimated from below, the proof settles it


@dataclass(frozen=True)
class IncrementalForm:
    """Matrices (F, ., .) of one block.

    tie: (H,) which multiplier belongs to each hidden coordinate; layer_of_tie: the hidden layer of each multiplier.

    absolute: the same four matrices (1, ., .) real, at or above sums of absolute values: what rounding is charged on.
    roundings: each computed entry is within gamma_roundings * absolute of the exact one.
    """

    c_input: Tensor
    c_hidden: Tensor
    z_input: Tensor
    z_hidden: Tensor | None
    tie: Tensor
    layer_of_tie: Tensor
    absolute: tuple[Tensor, Tensor, Tensor, Tensor | None]
    roundings: int


def nominal_cost(inputs: int, hidden: int, outputs: int) -> float:
    """Seconds for the gain of one frequency on a core of 2e10 operations per second, slower for small matrices."""
    multiplications = hidden**3 / 3 + hidden**2 * (inputs + outputs) + inputs**2 * (hidden + outputs)
    return 1e-4 + 8 * multiplications / 2e10 * (1 + 150 / max(hidden, 1))


def hidden_matrix(form: IncrementalForm, weights: Tensor) -> Tensor:
    """M for the multipliers `weights` (H,)."""
    matrix = -(form.c_hidden.mH @ form.c_hidden)
    if form.z_hidden is not None:
        cross = weights[:, None] * form.z_hidden
        matrix = matrix - cross - cross.mH
    return matrix + torch.diag(2 * weights).to(matrix.dtype)


def coupling(form: IncrementalForm, weights: Tensor) -> Tensor:
    """B^H for the multipliers `weights` (H,)."""
    return form.c_hidden.mH @ form.c_input + weights[:, None] * form.z_input


def gain(form: IncrementalForm, scaling: Tensor) -> Tensor:
    """lambda for each frequency (F,), infinite where M is not positive definite; differentiable, not yet proved.

    scaling: one positive multiplier per tie. Large matrices give an estimate from below, which the proof settles.
    """
    eliminated = _eliminate(form, scaling[form.tie])
    if eliminated is None:
        return torch.full((_count(form),), torch.inf, dtype=torch.float64, device=scaling.device)
    stacked = eliminated[1]
    square = stacked.mH @ stacked if stacked.shape[-1] <= stacked.shape[-2] else stacked @ stacked.mH
    if square.shape[-1] <= EXACT_SIDE or scaling.requires_grad or form.c_hidden.requires_grad:
        largest: Tensor = torch.linalg.eigvalsh(square)[:, -1]
        return largest
    return top_ritz_pair(square)[0]


def gain_slope(form: IncrementalForm, scaling: Tensor, *, sharpness: float) -> tuple[float, Tensor]:
    """The largest lambda and the gradient of a smooth maximum of all of them with respect to log(scaling).

    At the worst d, the worst u is M^-1 B^H d, and lambda changes with a multiplier by 2 Re u (z - u) (envelope
    theorem). sharpness: eigenvalues below lambda (1 - 1/sharpness) hardly count.
    """
    weights = scaling[form.tie]
    eliminated = _eliminate(form, weights)
    if eliminated is None:
        return math.inf, torch.zeros_like(scaling)
    factor, stacked = eliminated
    square = stacked.mH @ stacked
    if square.shape[-1] <= EXACT_SIDE:
        values, vectors = torch.linalg.eigh(square)
        values, vectors = values[:, -SMOOTHED:], vectors[..., -SMOOTHED:]
    else:
        top, vector = top_ritz_pair(square)
        values, vectors = top[:, None], vector[..., None]
    shares = torch.softmax((sharpness * values / values.max()).flatten(), 0).reshape(values.shape)
    solved = stacked[:, form.c_input.shape[-2] :] @ vectors
    hidden = torch.linalg.solve_triangular(factor.mH, solved, upper=True)
    before = form.z_input @ vectors
    if form.z_hidden is not None:
        before = before + form.z_hidden @ hidden
    slope = 2 * ((hidden.conj() * (before - hidden)).real * shares[:, None, :]).sum((0, 2)) * weights
    return float(values.max()), torch.zeros_like(scaling).index_add_(0, form.tie, slope)


def _count(form: IncrementalForm) -> int:
    return max(len(form.c_input), len(form.c_hidden), len(form.z_input))


def _eliminate(form: IncrementalForm, weights: Tensor) -> tuple[Tensor, Tensor] | None:
    """The Cholesky factor L of M, and A with A^H A = c_input^H c_input + B M^-1 B^H; None where M is not definite."""
    factor, info = torch.linalg.cholesky_ex(hidden_matrix(form, weights))
    if bool((info != 0).any()):
        return None
    solved = torch.linalg.solve_triangular(factor, coupling(form, weights), upper=False)
    return factor, torch.cat((form.c_input.expand(len(solved), -1, -1), solved), dim=-2)


def proved(form: IncrementalForm, scaling: Tensor, value: float) -> bool:
    """Whether |output| <= sqrt(value) |d| is proved at every frequency of the form, rounding included.

    Q is brought to a diagonal of about 1 by one scaling D for all frequencies (a congruence, which keeps definiteness)
    and factorised; the rounding of the symbols and of Q is bounded entry by entry through `absolute`.
    """
    weights = scaling[form.tie]
    matrix = _form_matrix(form, weights, value)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).real
    if not bool((diagonal > 0).all()):
        return False
    root = diagonal.amax(0).rsqrt()
    scaled = root[:, None] * matrix * root
    return bool(proved_definite(scaled, error=_form_error(form, weights, value, root)).all())


def _form_matrix(form: IncrementalForm, weights: Tensor, value: float) -> Tensor:
    lower_left = -coupling(form, weights)
    inputs = -(form.c_input.mH @ form.c_input)
    inputs = inputs + value * torch.eye(inputs.shape[-1], dtype=inputs.dtype, device=inputs.device)
    hidden = hidden_matrix(form, weights)
    inputs = inputs.expand(len(hidden), -1, -1)
    top = torch.cat((inputs, lower_left.mH), dim=-1)
    return torch.cat((top, torch.cat((lower_left, hidden), dim=-1)), dim=-2)


def _form_error(form: IncrementalForm, weights: Tensor, value: float, root: Tensor) -> float:
    """At or above the spectral norm of the error of the scaled Q: gamma times the Frobenius norm of absolute values."""
    c_input, c_hidden, z_input, z_hidden = form.absolute
    inputs = c_input.shape[-1]
    outputs = torch.cat((c_input[0], c_hidden[0]), dim=-1) * root
    total = outputs.T @ outputs
    total.diagonal()[:inputs].add_(value * root[:inputs].square())
    total.diagonal()[inputs:].add_(2 * (weights * root[inputs:].square()))
    cross = (weights * root[inputs:])[:, None] * z_input[0] * root[:inputs]
    total[inputs:, :inputs] += cross
    total[:inputs, inputs:] += cross.T
    if z_hidden is not None:
        cross = (weights * root[inputs:])[:, None] * z_hidden[0] * root[inputs:]
        total[inputs:, inputs:] += cross + cross.T
    operations = 4 * form.roundings + 4 * (outputs.shape[0] + 16)
    return gamma(operations) * float(torch.linalg.matrix_norm(total)) * (1 + gamma(4 * total.numel()))
