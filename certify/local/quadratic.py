"""Quadratic certificates around one image: bounds of the change of the logits, by sectors from the centre.

In l2, linear bounds lose most by enclosing all neurons in boxes. Here the ball remains a ball: if a neuron's argument
changes by z from its value z0 at the image, its answer changes by s z, where s is the slope of a secant that starts at
z0. This slope lies in an interval that shrinks with the ball, and one elimination of all layers with these intervals
bounds every change (`robustres.certify.blocks.network_bound`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.increments import increments
from robustres.certify.blocks.network_bound import proved_bound
from robustres.certify.graph.network import Node
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.program import Program
from robustres.certify.local.secants import slopes_from
from robustres.certify.local.sets import Region, half_widths
from robustres.certify.local.steps import Activation
from robustres.certify.local.tangents import OneSided, Tangents, given_up
from robustres.numerics import rounded_up

COPIES, STEPS, TOLERANCE = 16, 80, 3e-4
# A search ends about a thousandth above the best value; giving up a hundredth of that shortens the proof to a third.
REPAIR = Repair(loss=1e-5, spare=1e-6, main=1e-4)

Sectors = Mapping[Node, tuple[Tensor, Tensor]]


def sectors(program: Program, bounds: Bounds, centre: Bounds) -> Sectors:
    """Intervals that contain the slopes of all secants from the image, for every activation of the simplified network.

    bounds: proved on the region, one sample. centre: proved at the image itself, so as wide as rounding makes it.
    """
    found: dict[Node, tuple[Tensor, Tensor]] = {}
    for node, place in program.scalar_nodes.items():
        step = program.steps[place]
        assert isinstance(step, Activation)
        low, high = (side[step.source][0].to(torch.float64) for side in (centre.lower, centre.upper))
        lower, upper = (side[step.source][0] for side in (bounds.lower, bounds.upper))
        flat, steep = slopes_from(step.function, low, high, lower, upper)
        found[node] = (flat.flatten(), steep.flatten())
    return found


def searched(
    program: Program,
    slopes: Sectors,
    rows: Tensor,
    region: Region,
    *,
    known: Tangents | None = None,
    start: FixedPoint | None = None,
    steps: int = STEPS,
) -> FixedPoint:
    """Multipliers for rows (R, outputs) together: `value` estimates the largest root of the sum of their squares.

    In l2 that is of changes of length 1.
    """
    box = half_widths(region) if region.norm == "linf" else None
    layers = increments(program.order, slopes=slopes)
    for dtype in (torch.float32, torch.float64):  # the latter if the former's range does not suffice
        iteration = OneSided(program.order, layers, rows, box, COPIES, dtype, start, None)
        iteration.begin(known or {}, {} if start is None else start.tangents)
        found = iteration.adjusted(steps, TOLERANCE)
        if math.isfinite(found.value):
            break
    return found


def added(points: Sequence[FixedPoint], counts: Sequence[int]) -> FixedPoint:
    """One point for the rows of all, each of `counts` rows: inequalities with these multipliers add up, so the square
    of its value is at most the sum of theirs."""
    first = points[0]
    tangents = {}
    for node in {node: None for point in points for node in point.tangents}:
        width = next(point.tangents[node].shape[1] for point in points if node in point.tangents)
        parts = zip(points, counts, strict=True)
        tangents[node] = torch.cat([point.tangents.get(node, torch.zeros(n, width)) for point, n in parts])
    return replace(
        first,
        value=math.sqrt(sum(point.value**2 for point in points)),
        multipliers={
            node: torch.stack([point.multipliers[node] for point in points]).sum(0) for node in first.multipliers
        },
        sizes={node: torch.stack([point.sizes[node] for point in points]).amax(0) for node in first.sizes},
        weights=None
        if first.weights is None
        else torch.stack([point.weights for point in points if point.weights is not None]).sum(0),
        tangents=tangents,
    )


def proved_change(
    program: Program,
    slopes: Sectors,
    rows: Tensor,
    region: Region,
    found: FixedPoint,
    inner: Sequence[tuple[Node, Tensor]] = (),
    known: Tangents | None = None,
) -> float:
    """At or above |rows . change of the logits| on the region, for any multipliers; infinite if these prove nothing.

    slopes: proved in float64. inner: (R, n) rows of the changes of other nodes, which are added. known: proved
    tangents, of whose distances the rows give up what the search found; then only the rows' decrease is bounded.
    """
    if region.norm == "l1":
        return math.inf
    box = half_widths(region) if region.norm == "linf" else None
    if box is not None and found.weights is None:
        return math.inf
    layers = increments(program.order, slopes=slopes)
    inner = [*inner, *given_up(known or {}, found.tangents, len(rows))]
    bound = proved_bound(program.order, layers, found, rows=rows, box=box, repair=REPAIR, inner=inner)
    return bound if box is not None else rounded_up(bound * float(region.eps[0]), 1)
