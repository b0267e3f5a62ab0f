"""Search and proof of a whole network's bound in one call."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.increments import Sharing, SlopeIntervals, increments
from robustres.certify.blocks.network_bound import proved_bound
from robustres.certify.graph.network import Node


class NetworkBound(NamedTuple):
    """upper: the proved bound. reachable: estimate of the smallest provable bound. point: where the search ended."""

    upper: float
    reachable: float
    point: FixedPoint


def network_bound(
    output: Node,
    *,
    rows: Tensor | None = None,
    slopes: SlopeIntervals | None = None,
    box: Tensor | None = None,
    sharing: Sharing = "neuron",
    steps: int = 250,
    dtype: torch.dtype = torch.float64,
) -> NetworkBound:
    """The largest |rows . (f(x) - f(y))| / |x - y|, or for changes within a box, of a simplified network f."""
    order = output.ordered()
    layers = increments(order, slopes=slopes, sharing=sharing)
    point = search(order, layers, rows=rows, box=box, steps=steps, dtype=dtype)
    return NetworkBound(proved_bound(order, layers, point, rows=rows, box=box), point.value, point)
