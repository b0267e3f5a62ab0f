"""First guesses of the multipliers T, from which the search descends; nothing here needs to be right."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustres.certify.blocks.incremental_form import IncrementalForm
from robustres.certify.blocks.reduced_block import ReducedBlock
from robustres.certify.fourier.matrix_polynomial import MatrixPolynomial

SCAN_ABOVE_MINIMUM = (1e-8, 1e-6, 1e-3, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
COARSE_SCAN = (1e-6, 0.1, 0.3, 0.7, 1.5, 4.0)
EXCESSES = (0.5, 0.3, 0.8, 0.15, 1.2, 0.05, 2.0, 0.01, 5.0, 1e-4)


def starting_points(form: IncrementalForm, excesses: Sequence[float] = SCAN_ABOVE_MINIMUM) -> list[Tensor]:
    """Shapes of T, each with its multiples above the smallest admissible one: equal multipliers, the row sums of
    |V^H V|, the norms of V's columns over W's rows, and the T that cancels B (it finds CPL and SLL blocks)."""
    ties = int(form.tie.max()) + 1
    gram = (form.c_hidden.mH @ form.c_hidden).abs().amax(0)
    columns = form.c_hidden.abs().square().sum((0, 1))
    rows = form.z_input.abs().square().sum((0, 2))
    crossing = form.c_hidden.mH @ form.c_input
    cancelling = -_per_tie((crossing.conj() * form.z_input).real.sum((0, 2)), form.tie, ties) / _per_tie(
        rows, form.tie, ties
    ).clamp_min(1e-300)
    shapes = [torch.ones(ties, dtype=torch.float64, device=gram.device), _per_tie(gram.sum(1), form.tie, ties)]
    shapes.append((_per_tie(columns, form.tie, ties) / _per_tie(rows, form.tie, ties).clamp_min(1e-300)).sqrt())
    if bool((cancelling > 0).all()):
        shapes.append(cancelling)
    balance = _balance(form)
    starts = []
    for shape in shapes:
        largest = float(shape.max())
        if largest > 0 and math.isfinite(largest):
            shape = shape.clamp_min(1e-6 * largest)
            least = _least_multiple(form, shape)
            step = max(least, balance / float(shape.mean()))
            starts += [shape * (least + step * excess) for excess in excesses]
    return starts


def layered_starting_points(form: IncrementalForm, layer_of_tie: Tensor, norms: Sequence[float]) -> list[Tensor]:
    """For several hidden layers: one multiplier per layer, from the last to the first just large enough, times kappa.

    norms: of every layer but the first, the outer one last.
    """
    starts = []
    for kappa in (1.02, 1.1, 1.3, 1.7, 2.5, 4.0, 8.0):
        multipliers: list[float] = []
        demand = norms[-1] ** 2
        for norm in reversed((0.0, *norms[:-1])):
            multiplier = max(kappa * demand / 2, 1e-300)
            multipliers.insert(0, multiplier)
            demand = (multiplier * norm) ** 2 / max(2 * multiplier - demand, 1e-300)
        starts.append(torch.tensor(multipliers, dtype=torch.float64, device=form.tie.device)[layer_of_tie])
    return starts


def _per_tie(values: Tensor, tie: Tensor, ties: int) -> Tensor:
    return torch.zeros(ties, dtype=values.dtype, device=values.device).index_add_(0, tie, values)


def _least_multiple(form: IncrementalForm, shape: Tensor) -> float:
    """The factor above which 2 T - V^H V is positive definite for that shape of T."""
    root = shape[form.tie].rsqrt()
    return 0.5 * float(torch.linalg.matrix_norm(form.c_hidden * root, 2).max()) ** 2


def _balance(form: IncrementalForm) -> float:
    """|S| |V| / |W|: where the optimum lies when the branch is small beside the shortcut."""
    norms = [float(torch.linalg.matrix_norm(part, 2).max()) for part in (form.c_input, form.c_hidden, form.z_input)]
    return norms[0] * norms[1] / norms[2] if norms[2] > 0 else 0.0


def reduced_starting_points(block: ReducedBlock, shortcut: float, norms: Sequence[float]) -> Iterator[Tensor]:
    """For a reduced block: multiples of equal multipliers and of |V's columns| / |W's rows|, most promising first.

    First the T that cancels B = S^* V + W^* T, which finds CPL and SLL blocks. With norms alone, the best T of
    V phi(W d) is |V|^2 / 2 plus an excess of |V|^2 / 2 + |S| |V| / |W|; a block whose directions do not all agree does
    better with less. A layer before takes what the layer after it demands.

    norms: of the layers in order, each but the first times the width of the slopes before it.
    """
    ones = [torch.ones(count, dtype=torch.float64, device=block.device) for count in block.channels]
    columns = torch.stack([part.square().sum(0) for part in block.layers[-1].parts.values()]).sum(0)
    rows = torch.stack([part.square().sum(1) for part in block.layers[-2].parts.values()]).sum(0)
    ratio = (columns / rows.clamp_min(1e-300)).sqrt().reshape(-1, block.channels[-1]).mean(0)
    shapes = [ones[-1], (ratio / ratio.mean().clamp_min(1e-300)).clamp_min(1e-3)]
    if len(norms) == 2:
        cancelling = -_aligned(block.layers[1], block.crossing).reshape(-1, block.channels[0]).sum(0)
        cancelling = cancelling / rows.reshape(-1, block.channels[0]).sum(0).clamp_min(1e-300)
        if bool((cancelling > 0).all()):
            yield cancelling * (1 + 1e-6)
    least = 0.5 * norms[-1] ** 2
    for excess in EXCESSES:
        outer = least + excess * (least + shortcut * norms[-1] / norms[-2])
        for shape in shapes:
            if len(norms) == 2:
                yield outer * shape
                continue
            demand = 0.5 * (outer * norms[1]) ** 2 / max(2 * outer - 2 * least, 1e-300)
            for factor in (0.5, 1.0):
                inner = factor * (demand + shortcut * norms[1] * norms[2] / norms[0])
                yield torch.cat((inner * ones[0], outer * shape))


def _aligned(first: MatrixPolynomial, second: MatrixPolynomial) -> Tensor:
    """The real inner products of the columns of two polynomials, summed over all frequencies."""
    total = torch.zeros(first.magnitude.shape[1], dtype=torch.float64, device=first.magnitude.device)
    for lag, part in first.parts.items():
        if lag in second.parts:
            total += (part * second.parts[lag]).sum(0)
    return total
