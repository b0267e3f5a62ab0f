"""The bound of a network on tori: every region is eliminated frequency by frequency, with one batch of rows for all.

The discrete Fourier transform with 1/sqrt(points) is unitary, so the squares of a signal's values and of its transform
have the same sum. An inequality that holds for every frequency of a region, with the same multipliers, therefore holds
for the region. The weight of each channel at a cut is taken from the search; it may be wrong by a factor, which is
proved with the region above the cut.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from robustres.certify.blocks.cost import region_cost
from robustres.certify.blocks.elimination import Eliminated, eliminate
from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.frequencies import Frequencies, Start, local_layers
from robustres.certify.blocks.frequency_search import refined, refinement_cost
from robustres.certify.blocks.front import FLOOR, UNIT, UP, Repair, frobenius
from robustres.certify.blocks.increments import BoundedLayer, Increment
from robustres.certify.blocks.network_bound import largest_square
from robustres.certify.blocks.region_repair import START, best_repair, critical_frequencies
from robustres.certify.blocks.torus_network import Region, TorusNetwork
from robustres.certify.fourier.torus import coarse_frequencies
from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import Shape
from robustres.numerics import gamma, product_up, rounded_up

PART_BYTES = 2e9  # memory of the matrices of the frequencies that are eliminated together
BYTES = 16 * 8  # memory of an entry in all matrices that exist at the same time
CRITICAL = 16  # repairs are compared at one in 16 frequencies
# Tried, after one that mixes more, if the best repair at these frequencies fails at others, or proves a value that is
# larger there by a factor AGAIN.
SURER = (Repair(5e-2, 1e-2), Repair(0.1, 0.1))
MIXED, AGAIN = 8.0, 1.1
FAR = 1.03  # factor of the reached value from which a region's multipliers are refined at critical frequencies
REFINEMENT = 0.25  # what the refinement may cost at most, in proofs of the region
LOSS = 1e-9  # relative loss that separates the error of the rows at frequency 0 from them


@torch.no_grad()
def torus_bound(
    network: TorusNetwork,
    point: FixedPoint,
    *,
    rows: Tensor | None = None,
    repair: Repair | None = None,
    trials: int = 0,
) -> float:
    """Upper bound of the Lipschitz constant of rows . output, infinite if the multipliers prove none; its square is a
    product over the regions.

    network: result of `on_tori`. point: result of a search on its order and layers. rows: (R, outputs), by default all
    outputs. trials: number of repairs of which the best at a few frequencies is chosen for each region; the tail, and
    with 0 all regions, use `repair`.
    """
    found = eliminate(network.tail, network.layers, point, rows=rows, repair=repair)
    if found is None:
        return math.inf
    squares = [found.factor]
    scale: Tensor | None = None  # (C, 1 or residues) at the cut, which is measured by |scale w|^2
    if not network.constant:
        channels, root = _scale(network.tail[0], point)
        scale = channels[:, None]
        positions = math.prod(network.tail[0].shape[1:])
        squares.append(_relative(found.rows, found.slack, root.repeat_interleave(positions)))
    for place, region in enumerate(network.regions):
        joint = network.layers.get(region.order[0])
        below = _scale(region.order[0], point) if isinstance(joint, BoundedLayer) else None
        root = torch.ones(1, dtype=torch.float64) if below is None else below[1]
        root = root.repeat_interleave(math.prod(region.multiplicity[region.order[0]]) if len(root) > 1 else 1)
        start = partial(_sums, found, network.tail[0].shape) if scale is None else partial(_diagonal, scale)
        if trials:
            reached = 1.0 if place + 1 < len(network.regions) else point.value
            squares.append(_least_square(region, network.layers, point, start, root, trials, reached**2))
        else:
            squares.append(region_square(region, network.layers, point, start, root=root, repair=repair))
        squares.append(1 + 2 * LOSS if scale is None else 1.0)
        if below is not None and isinstance(joint, BoundedLayer):
            scale = below[0][:, None] * _roots_of_counts(joint, network.regions[place + 1]) * (joint.constant * UP)
    return rounded_up(math.sqrt(product_up(squares)), 16)


def region_square(
    region: Region,
    layers: Mapping[Node, Increment],
    point: FixedPoint,
    start: Start,
    *,
    root: Tensor,
    repair: Repair | None,
    frequencies: Tensor | None = None,
) -> float:
    """Upper bound of |rows . change of the output|^2 / |change of the input / root|^2 over the frequencies (F, 2), all
    by default; infinite if the multipliers prove none. start: rows and slack of the output at given frequencies."""
    local = local_layers(region, layers)
    chosen: dict[Node, Tensor] = {}
    largest = 0.0
    for part_of_them in _parts(region) if frequencies is None else [frequencies]:
        space = Frequencies(region, part_of_them)
        rows, slack = start(space)
        part = eliminate(region.order, local, point, rows=rows, slack=slack, repair=repair, space=space, chosen=chosen)
        if part is None:
            return math.inf
        largest = max(largest, part.factor * _relative(part.rows, part.slack, root))
    return largest * UP


def _least_square(
    region: Region,
    layers: Mapping[Node, Increment],
    point: FixedPoint,
    start: Start,
    root: Tensor,
    trials: int,
    reached: float,
) -> float:
    """The square that the best of some repairs proves, if necessary of multipliers that are refined for this region.

    reached: about the smallest such square, by the search of the whole network.
    """
    every = coarse_frequencies(region.torus)
    some = critical_frequencies(region, point, max(1, len(every) // CRITICAL))

    @cache
    def square_of(multipliers: FixedPoint, repair: Repair) -> float:
        return region_square(region, layers, multipliers, start, root=root, repair=repair, frequencies=some)

    def proved(multipliers: FixedPoint) -> float:
        best, least = best_repair(partial(square_of, multipliers), trials), math.inf
        expected = square_of(multipliers, best)
        mixed = replace(best, share=min(1.0, MIXED * best.share))
        for repair in (best, mixed, *(stronger for stronger in SURER if stronger.lift > best.lift)):
            least = min(least, region_square(region, layers, multipliers, start, root=root, repair=repair))
            if least <= AGAIN * AGAIN * expected:
                break
        return least

    affordable = int(min(len(every), REFINEMENT * region_cost(region, layers) / refinement_cost(region)))
    near = square_of(point, START) if affordable else 0.0
    if near <= FAR * FAR * reached:
        return proved(point)
    finer = refined(region, layers, point, start, root, critical_frequencies(region, point, affordable))
    least = math.inf if finer is None else proved(finer)
    return least if least <= near else min(least, proved(point))


@torch.no_grad()
def region_bound(
    region: Region, layers: Mapping[Node, Increment], point: FixedPoint, *, repair: Repair | None = None
) -> float:
    """Upper bound of the Lipschitz constant from the input of a region to its whole output, infinite if the
    multipliers prove none."""
    one = torch.ones(1, dtype=torch.float64)
    start = partial(_diagonal, torch.ones(region.order[-1].shape[0], 1, dtype=torch.float64))
    square = region_square(region, layers, point, start, root=one, repair=repair) * UP
    return rounded_up(math.sqrt(square), 16) if math.isfinite(square) else math.inf


def _parts(region: Region) -> list[Tensor]:
    """The frequencies in parts whose matrices fit into memory, each spread over all frequencies, the first with 0."""
    every = coarse_frequencies(region.torus)
    widest = max(region.channels(node) for node in region.order)
    count = min(len(every), math.ceil(len(every) * widest * widest * BYTES / PART_BYTES))
    return [every[place::count] for place in range(count)]


def _diagonal(scale: Tensor, space: Frequencies) -> tuple[Tensor, float]:
    """The rows of a cut, the same at every frequency. scale: (C, 1 or residues)."""
    residues = math.prod(space.region.multiplicity[space.region.order[-1]])
    rows = torch.diag(scale.expand(-1, residues).flatten()).to(torch.complex128)
    return rows.expand(len(space.frequencies), -1, -1), 0.0


def _scale(node: Node, point: FixedPoint) -> tuple[Tensor, Tensor]:
    """s (C,), whose squares are the weights of the channels at a cut, and upper bounds of 1/s."""
    t = point.multipliers[node]
    root = t.clamp_min(1e-9 * float(t.max()) + 1e-290).rsqrt()
    return 1 / root, root * UP


def _roots_of_counts(joint: BoundedLayer, below: Region) -> Tensor:
    """(1 or residues,): upper bounds of the roots of the counts at the residues of a region's output."""
    if joint.counts is None:
        return torch.ones(1, dtype=torch.float64)
    first, second = below.multiplicity[below.order[-1]]
    return joint.counts[:first, :second].sqrt().flatten() * UP


def _relative(rows: Tensor, slack: float, root: Tensor) -> float:
    """Upper bound of (|rows d|^2 + slack |d|^2) / |d / root|^2 over all d, above what may underflow."""
    largest = float(root.max())
    scaled = rows * root
    norm = math.sqrt(largest_square(scaled)) + 2 * UNIT * frobenius(scaled)
    return max(rounded_up(norm * norm + slack * largest * largest, 4), FLOOR)


def _sums(found: Eliminated, shape: Shape, space: Frequencies) -> tuple[Tensor, float]:
    """Rows (1, R, C H W), one number per channel, at frequency 0 (0 elsewhere), and slack that includes their error."""
    rows = found.rows
    values = rows.reshape(rows.shape[1], shape[0], -1)
    middle = (values.amax(2) + values.amin(2)) / 2
    off = frobenius((values - middle[..., None]).flatten(1)) * (1 + gamma(8))
    torus, node = space.region.torus, space.region.order[-1]
    residues = math.prod(space.region.multiplicity[node])
    start = torch.zeros(
        len(space.frequencies), len(middle), shape[0] * residues, dtype=torch.complex128, device=rows.device
    )
    at_zero = (middle * math.sqrt(math.prod(torus.points))).repeat_interleave(residues, dim=1)
    start[~space.frequencies.any(1)] = at_zero.to(start.dtype)
    off += 8 * UNIT * frobenius(at_zero)
    return start, (found.slack + off * off / LOSS) * UP
