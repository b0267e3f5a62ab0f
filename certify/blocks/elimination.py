"""Elimination of a network's layers from output to input, with all rounding errors (section 3.4 of the mathematics).

Two inputs differ by d at the nodes of the current cut. Throughout,

    |rows . change of the output|^2  <=  factor * ( | sum_n G_n d_n |^2  +  sum_n slack_n |d_n|^2 ),

for the *stored* numbers G_n, slack_n and factor. Each step replaces the last node of the cut by its inputs:

- w = W z: G_z <- G_w W. The stored product is within eta of the exact one, in the Frobenius norm, so that
  |exact|^2 <= (1 + tau) |stored|^2 + (1 + 1/tau) eta^2 |z|^2: errors enter by their squares, as slack.
- w = a z + D v with v (z - v) >= 0: for any T >= 0 add 2 v^T T (z - v) >= 0. With H = G_w D and B the other rows
  (G_w a in place of z), P = 2T - H^T H - slack D^2 and K = H^T B + (T + slack a D) in place of z, the right
  side is |B d|^2 + 2 v^T K d - v^T P v. Let L L^T be the computed factor of P minus a shift, X the computed L^-1 K.
  The shift is chosen so that P - L L^T >= rho by Rump's theorem, and |L X - K| <= r by the error bound of triangular
  systems, hence the maximum over v is at most |B d|^2 + |X d|^2 + r^2 |d|^2 / rho: rows [B; X], and slack again.
- A sum of rows of nodes that enter the cut later, s = sum_k M_k d_k, is a node of its own until all are taken off:
  G_k <- G_k + G_s M_k, while s means the sum of the rest from then on.
- |w| <= c |z| (pooling, modules that state a bound): the same with t (c^2 |z|^2 - |w|^2) >= 0.

The multipliers may therefore come from any source: if they are not admissible, the factorisation fails. Slack is of the
size of squared roundings, and the next elimination absorbs it into P, so that it does not grow along the network.

Sources: Fazlyab et al. (2019), LipSDP, for the inequality; Higham (2002), theorems 8.5 and 10.3, and Rump (2006) for
the rounding. The order of elimination, the slack and the repair are derived here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.front import Front, Repair, Space
from robustres.certify.blocks.increments import BoundedLayer, Increment, SectorLayer, on_device
from robustres.certify.graph.network import Linear, Merge, Node, Source
from robustres.certify.maps.linear_map import common_device


@dataclass(frozen=True, eq=False)
class Eliminated:
    """|rows . change of the output|^2 <= factor * (|rows d|^2 + slack |d|^2) for the stored rows (F, R, n) and every
    change d of the first node."""

    rows: Tensor
    slack: float
    factor: float


def eliminate(
    order: Sequence[Node],
    layers: Mapping[Node, Increment],
    point: FixedPoint,
    *,
    rows: Tensor | None = None,
    repair: Repair | None = None,
    slack: float = 0.0,
    space: Space | None = None,
    chosen: dict[Node, Tensor] | None = None,
    inner: Sequence[tuple[Node, Tensor]] = (),
) -> Eliminated | None:
    """Eliminate all nodes from the last to the first; None if no admissible multipliers are found for a layer.

    point: the multipliers of nonlinear nodes and the sizes of their inputs; nodes without use diagonal dominance.
    order: `output.ordered()`, or the part of it from a node that all paths pass; its first node remains.
    rows: (R, outputs), the identity if omitted; in a separate space, (F, R, n). slack: of the output.
    chosen: the multipliers used for another part of the same batch; they are reused, and new ones are stored there.
    inner: nodes and (R, n) rows of their changes, which are added to `rows`; not in a separate space.
    """
    maps = [node.piece.map for node in order[1:] if isinstance(node.piece, Linear)]
    device = common_device(maps)
    output, first = order[-1], order[0]
    if space is None:
        start = torch.eye(math.prod(output.shape), dtype=torch.float64) if rows is None else rows.to(torch.float64)
        rows, space = start.to(device)[None], Space()
    assert rows is not None, "rows must be given for a separate space"
    front = Front(output, rows, repair or Repair(), space, slack, chosen)
    if any(node not in order for node, _ in inner):
        raise ValueError("rows of a node that is not eliminated")
    waiting: dict[Node, list[Tensor]] = {}
    for node, part in inner:
        waiting.setdefault(node, []).append(part.to(device, torch.float64))
    # The sum of all inner rows times their changes is one more node, of which each part is taken off in its turn.
    total = Node(Source(), (), (rows.shape[1],), "", first.origin)
    with torch.no_grad():
        if waiting:
            front.open(total)
        for node in reversed(order):
            if waiting:
                for part in waiting.pop(node, []):
                    front.take(total, node, part)
                if not waiting:
                    front.close(total)
            if node is first:
                break
            if node not in front.rows:
                continue
            if not _step(front, node, layers, point):
                return None
            if set(front.rows) != {first}:
                front.compress()
    if first not in front.rows:
        return Eliminated(rows.new_zeros(len(rows), 1, math.prod(space.shape(first))), 0.0, 1.0)
    return Eliminated(front.rows[first], front.slack[first], front.factor)


def _step(front: Front, node: Node, layers: Mapping[Node, Increment], point: FixedPoint) -> bool:
    piece, layer = node.piece, layers.get(node)
    if isinstance(layer, SectorLayer):
        placed = on_device(layer, front.rows[node].device)
        assert isinstance(placed, SectorLayer)
        return front.activation(node, placed, point)
    if isinstance(layer, BoundedLayer):
        return front.bounded(node, layer, point)
    if isinstance(piece, Linear):
        front.linear(node, piece.map)
        return True
    assert isinstance(piece, Merge), piece
    front.merge(node, piece)
    return True
