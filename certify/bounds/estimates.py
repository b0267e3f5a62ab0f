"""Lower estimates for the network and each of its pieces, from random or real images.

They guarantee nothing, and no bound depends on them: if torch has no derivative there is no estimate, and a slope above
the bound counts only if the outputs for two inputs confirm it. For example, torch's derivative of logsumexp is 1 for
each of several equal inputs of 1e150, which together are n times as steep as the function.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.graph.capture import BATCH, Captured, device_of
from robustres.certify.graph.network import Node
from robustres.certify.lower.ascent import ascend, children
from robustres.certify.lower.jacobian import Steepest, norms, scaled, steepest_directions
from robustres.numerics import gamma

Piece = tuple[Node, Node, BlockRow]
MOST_STARTS = 3 * BATCH  # number of real images, for inputs of at most this size:
SMALL_INPUT = 20_000
CLIMBS = 8  # number of ascents: the first from every image, the others from four copies of the best
CLIMB_REACH = 0.3
CLIMBED_SAMPLES = 4 * CLIMBS  # samples per ascent; each step runs both ends of a pair, on average for half the steps
REACH = 0.1  # distance of a pair over the size of the values at its start
STEPS = tuple(10.0**-k for k in range(1, 10))  # distance between the points of a pair, over the size of the point
CLOSE = 1e-6  # accuracy of torch's derivatives: that of hardsigmoid is 3e-8 too large


def start_images(images: Tensor | None) -> Tensor | None:
    """A few of the images, evenly spaced, in float64; a multiple of the captured batch."""
    if images is None:
        return None
    count = MOST_STARTS if images[0].numel() <= SMALL_INPUT else BATCH
    places = torch.linspace(0, len(images) - 1, count).round().long()
    return images[places.to(images.device)].detach().to(torch.float64)


def block_estimates(
    captured: Captured, pieces: Sequence[Piece], images: Tensor | None, steps: int, generator: torch.Generator | None
) -> list[float]:
    """The slopes found for rows with a possibly loose bound and no estimate yet, or for all such rows if there are
    images; 0 for the others, and for parts of one operation, between which the graph has no value."""
    found, last = [], {end.origin: end for _, end, _ in pieces}
    for entry, end, row in pieces:
        again = images is not None and row.kind != "activation"
        whole = last[end.origin] is end and entry.origin is not end.origin
        wanted = row.kind != "linear" and (row.lower == 0 or again) and whole
        found.append(estimate(captured, entry, end, images, steps, generator, upper=row.upper) if wanted else 0.0)
    return found


def estimate(
    captured: Captured,
    entry: Node,
    end: Node,
    images: Tensor | None,
    steps: int,
    generator: torch.Generator | None,
    *,
    upper: float,
) -> float:
    """The largest Jacobian norm from `entry` to `end` found at values reached from images; 0 for no steps.

    With real images, also after a short ascent on the ratio of a pair from there, as in `strongest_witness`.
    upper: the bound; a larger derivative is replaced by the ratio of a pair in its direction.
    """
    if steps == 0:
        return 0.0
    draw = generator or torch.Generator().manual_seed(0)
    shape = (1 if captured.rebatches else BATCH, *captured.source.meta["val"].shape[1:])
    starts = torch.rand(shape, dtype=torch.float64, generator=draw) if images is None else images
    ascent = images is not None and not captured.on_unit_domain

    def steepest(images: Tensor) -> float:
        def piece(values: Tensor) -> Tensor:
            # Other values that depend on the input are constants (shapes, types, zeros), but the graph computes them.
            others = images[torch.arange(len(values), device=images.device) % len(images)]
            return captured.run({captured.source: others, entry.origin: values}, end.origin)

        with torch.no_grad():
            points = captured.run({captured.source: images}, entry.origin)
        start = torch.randn(points.shape, dtype=torch.float64, generator=draw).to(points.device)
        slopes = steepest_directions(piece, points, start, steps=steps)
        found = [(points, slopes)]
        if ascent:
            apart = scaled(REACH * norms(points), slopes.direction)
            middle, spread = ascend(piece, points, apart, steps=steps, deadline=math.inf)
            found.append((middle, steepest_directions(piece, middle, spread, steps=steps)))
        return max(_confirmed(piece, x, slopes, upper) for x, slopes in found)

    together = MOST_STARTS if captured.rebatches else BATCH
    return _largest(map(steepest, torch.split(starts.to(device_of(captured.module)), together)))


def climbed(
    captured: Captured,
    entry: Node,
    end: Node,
    images: Tensor,
    *,
    ascent_steps: int,
    generator: torch.Generator | None,
    upper: float,
) -> float:
    """The largest Jacobian norm found by repeated ascents from images (N, *shape), as in `strongest_witness`: from each
    of them, then from moved and spread copies of the two best."""
    if ascent_steps < 1 or not captured.rebatches:
        return 0.0
    draw = generator or torch.Generator().manual_seed(0)
    return _largest(_climb(captured, entry, end, images.to(device_of(captured.module)), ascent_steps, draw, upper))


def _largest(slopes: Iterator[float]) -> float:
    """The largest of the slopes; 0 if torch has no derivative, or a wrong one."""
    try:
        return max(slopes)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return 0.0


def _climb(
    captured: Captured, entry: Node, end: Node, middle: Tensor, steps: int, draw: torch.Generator, upper: float
) -> Iterator[float]:
    """The largest slope after each ascent."""

    def network(values: Tensor) -> Tensor:
        return captured.run({entry.origin: values}, end.origin)

    start = torch.randn(middle.shape, dtype=torch.float64, generator=draw).to(middle.device)
    spread = scaled(CLIMB_REACH * norms(middle), steepest_directions(network, middle, start, steps=4).direction)
    for climb in range(CLIMBS):
        found = ascend(network, middle, spread, steps=steps if climb == 0 else steps // 2 + 1, deadline=math.inf)
        middle, spread = (torch.cat(ends) for ends in zip((middle, spread), found, strict=True))
        slopes = steepest_directions(network, middle, spread, steps=4)
        yield _confirmed(network, middle, slopes, upper)
        order = slopes.stretch.nan_to_num(0, 0, 0).argsort(descending=True)[:2]
        middle, spread = children(middle[order], spread[order], draw)


def _confirmed(piece: Callable[[Tensor], Tensor], x: Tensor, found: Steepest, upper: float) -> float:
    """The largest slope; slopes above the bound are replaced by the ratio of a pair minus its rounding error."""
    stretch = found.stretch.nan_to_num(0, 0, 0)
    over = stretch > upper * (1 + CLOSE)
    if not bool(over.any()):
        return float(stretch.max())
    ratios = torch.zeros_like(stretch)
    with torch.no_grad():
        here = piece(x)
        for step in STEPS:
            other = x + scaled(step * norms(x).clamp_min(1.0), found.direction)
            there = piece(other)
            rounding = gamma(64) * (norms(here) + norms(there))
            ratios = torch.maximum(ratios, ((norms(there - here) - rounding) / norms(other - x)).nan_to_num(0, 0, 0))
    return float(torch.where(over, ratios, stretch).max())
