"""Eliminating a network's layers from its output to its input, every rounding charged (section 3.4 of the mathematics).

Two inputs differ by d at the nodes of the present cut. Throughout,

    |rows . change of the output|^2  <=  factor * ( | sum_n G_n d_n |^2  +  sum_n slack_n |d_n|^2 ),

for the *stored* numbers G_n, slack_n and factor. Each step replaces the last node of the cut by its inputs:

- w = W z: G_z <- G_w W. The stored product is within eta of the exact one, in the Frobenius norm, so that
  |exact|^2 <= (1 + tau) |stored|^2 + (1 + 1/tau) eta^2 |z|^2: errors enter by their squares, as slack.
- w = a z + D v with v (z - v) >= 0: for any T >= 0 add 2 v^T T (z - v) >= 0. With H = G_w D and B the other rows
  (G_w a in the place of z), P = 2T - H^T H - slack D^2 and K = H^T B + (T + slack a D) in the place of z, the right
  side is |B d|^2 + 2 v^T K d - v^T P v. Let L L^T be the computed factor of P minus a shift, X the computed L^-1 K.
  The shift is chosen so that P - L L^T >= rho by Rump's theorem, and |L X - K| <= r by the error bound of triangular
  systems, hence the maximum over v is at most |B d|^2 + |X d|^2 + r^2 |d|^2 / rho: rows [B; X], and slack again.
- |w| <= c |z| (pooling, modules that state a bound): the same with t (c^2 |z|^2 - |w|^2) >= 0.

So the multipliers may come from anywhere: what is not admissible fails to factorise. Slack is of the size of squared
roundings, and the next elimination takes it up into P, so it does not grow along the network.

Sources: Fazlyab et al. (2019), LipSDP, for the inequality; Higham (2002), theorems 8.5 and 10.3, and Rump (2006) for
the rounding. The order of elimination, the slack and the repair are derived here.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.increments import BoundedLayer, Increment, SectorLayer, on_device
from robustres.certify.graph.network import Linear, Merge, Node, Source
from robustres.certify.maps.linear_map import LinearMap, as_rows
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm
from robustres.certify.proof.cholesky_proof import definiteness_slack
from robustres.numerics import gamma

UNIT = 2.0**-53
FLOOR = 1e-250  # slack that is added everywhere: far above all that products lose by underflow
UP = 1 + 2.0**-40  # covers the rounding of the few scalar operations that make a slack
MIXTURES = (1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # shares of the multipliers that are admissible for certain


@dataclass(frozen=True, eq=False)
class Weights:
    """multipliers, sizes: (ties,) of every nonlinear node, as in `FixedPoint`; a node without an entry gets multipliers
    by diagonal dominance."""

    multipliers: Mapping[Node, Tensor]
    sizes: Mapping[Node, Tensor]


@dataclass(frozen=True)
class Repair:
    """How multipliers that are close to admissible are made so: raised by `lift`, and mixed with a share of those that
    diagonal dominance allows, at least `share` and as much as the layer needs.

    loss: relative, of each step, by which squared roundings are separated from the rows. spare: what is kept back of
    each pivot's smallest eigenvalue beyond its own rounding. Both cost a little and keep slack small. main:
    slack of more than this share of the rows becomes rows of its own before a linear map makes more of it.
    """

    lift: float = 1e-4
    share: float = 1e-5
    loss: float = 1e-9
    spare: float = 0.0
    main: float = 1e-6


@dataclass(frozen=True, eq=False)
class Eliminated:
    """|rows . change of the output|^2 <= factor * (|rows d|^2 + slack |d|^2) for the stored rows (R, n) and every
    change d of the input."""

    rows: Tensor
    slack: float
    factor: float


def eliminate(
    order: Sequence[Node],
    layers: Mapping[Node, Increment],
    weights: Weights,
    *,
    rows: Tensor | None = None,
    repair: Repair | None = None,
) -> Eliminated | None:
    """All nodes from the output to the input; None where no admissible multipliers are found for a layer.

    order: `output.ordered()`, starting with the source. rows: (R, outputs), the identity where left out.
    """
    maps = [node.piece.map for node in order if isinstance(node.piece, Linear)]
    device = next((m.device for m in maps if m.device.type != "cpu"), torch.device("cpu"))
    output = order[-1]
    start = torch.eye(math.prod(output.shape), dtype=torch.float64) if rows is None else rows.to(torch.float64)
    front = Front(output, start.to(device), repair or Repair())
    with torch.no_grad():
        for node in reversed(order):
            if isinstance(node.piece, Source):
                continue
            if node not in front.rows:
                continue
            if not _step(front, node, layers, weights):
                return None
            front.compress()
    source = order[0]
    if source not in front.rows:
        return Eliminated(start.new_zeros(1, math.prod(source.shape)).to(device), 0.0, 1.0)
    return Eliminated(front.rows[source], front.slack[source], front.factor)


def _step(front: "Front", node: Node, layers: Mapping[Node, Increment], weights: Weights) -> bool:
    piece, layer = node.piece, layers.get(node)
    if isinstance(piece, Linear):
        front.linear(node, piece.map)
        return True
    if isinstance(layer, SectorLayer):
        placed = on_device(layer, front.rows[node].device)
        assert isinstance(placed, SectorLayer)
        return front.activation(node, placed, weights)
    if isinstance(layer, BoundedLayer):
        return front.bounded(node, layer, weights)
    assert isinstance(piece, Merge), piece
    front.merge(node, piece)
    return True


class Front:
    """The present cut: rows and slack of each of its nodes, and the factor."""

    def __init__(self, output: Node, rows: Tensor, repair: Repair) -> None:
        self.repair = repair
        self.rows: dict[Node, Tensor] = {output: rows}
        self.slack: dict[Node, float] = {output: FLOOR}
        self.factor = 1.0

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.rows.values())))

    def _charge(self, node: Node, error: float) -> None:
        """The exact rows of a node lie within `error` of the stored ones, in the spectral norm."""
        if error > 0:
            self.factor *= (1 + self.repair.loss) * UP
            self.slack[node] = (self.slack[node] + error * error / self.repair.loss) * UP

    def _add(self, node: Node, rows: Tensor, *, error: float = 0.0, slack: float = 0.0) -> None:
        """Rows for a node of the cut, or for one that joins it."""
        if node in self.rows:
            rows = rows + self.rows[node]
            error += 2 * UNIT * _frobenius(rows)
            slack += self.slack[node]
        self.rows[node], self.slack[node] = rows, slack * UP + FLOOR
        self._charge(node, error)

    def linear(self, node: Node, map_: LinearMap) -> None:
        """w = W z."""
        self._slack_as_rows(node)
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        image = as_rows(map_.adjoint(rows.reshape(-1, *map_.out_shape)))
        steep = absolute_norm(map_)
        error = gamma(ALGORITHM_FACTOR * map_.roundings) * _frobenius(rows) * steep
        self._add(node.inputs[0], image, error=error * UP, slack=slack * steep * steep)

    def merge(self, node: Node, piece: Merge) -> None:
        """w = z_1 + z_2 + ..., or all of them side by side."""
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        if piece.kind == "sum":
            for parent in node.inputs:
                self._add(parent, rows, slack=slack * len(node.inputs))
            return
        assert piece.axis is not None
        lengths = [parent.shape[piece.axis] for parent in node.inputs]
        parts = torch.split(rows.reshape(-1, *node.shape), lengths, dim=1 + piece.axis)
        for parent, part in zip(node.inputs, parts, strict=True):
            self._add(parent, as_rows(part), slack=slack)

    def activation(self, node: Node, layer: SectorLayer, weights: Weights) -> bool:
        """w = a z + D v; False where no multipliers are admissible."""
        rows, slack = self.rows.pop(node), self.slack.pop(node) * UP
        rows, turned = self._mixed(rows, layer, back=True)
        width = layer.width
        free = (width > 0).nonzero().flatten()
        straight = rows * layer.lower
        hidden = (rows * width)[:, free]
        steepest = float(layer.lower.abs().max())
        error = turned * (steepest + float(width.max()))
        error += 2 * UNIT * (_frobenius(straight) + _frobenius(hidden))
        parent = node.inputs[0]
        straight, back = self._mixed(straight, layer)
        self._add(parent, straight, error=(error + back) * UP, slack=slack * steepest * steepest)
        if not len(free):
            return True
        place = layer.tie[free]
        a, d = layer.lower[free], width[free]
        demand = hidden.T @ hidden
        demand.diagonal().add_(slack * d * d)
        shape = weights.sizes.get(node)
        multipliers = weights.multipliers.get(node)
        certain = _dominating(demand, layer, place, shape)
        least = _largest_of_ties(demand.diagonal() / 2, layer, place)
        lift = 1 + self.repair.lift
        for share in (self.repair.share, *(more for more in MIXTURES if more > self.repair.share)):
            chosen = certain if multipliers is None else (1 - share) * multipliers + share * 1.01 * certain
            t = (lift * chosen.maximum(least))[place]
            pivot = _Pivot.of(demand, t, self.count, self.repair.spare)
            if pivot is not None:
                break
        else:
            return False
        own = torch.zeros(len(free), len(width), dtype=rows.dtype, device=rows.device)
        own[torch.arange(len(free)), free] = t + slack * a * d
        own, moved = self._mixed(own, layer)
        size = float((t + slack * a.abs() * d).mul(pivot.root).norm())
        self._eliminate(pivot, hidden, {parent: (own, size * (16 * UNIT) + moved * float(pivot.root.max()))})
        return True

    def bounded(self, node: Node, layer: BoundedLayer, weights: Weights) -> bool:
        """|w| <= c |z|."""
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        parents = Counter(node.inputs)  # |z|^2 counts an input as often as it stands there
        demand = rows.T @ rows
        demand.diagonal().add_(slack)
        alone = not self.rows
        if not math.isfinite(layer.constant):
            return False
        least = _largest(demand) + gamma(4 * (len(rows) + 16)) * (_square(rows) + slack)
        wanted = weights.multipliers.get(node)
        t = least if alone else (1 + 1e-3) * max(least, 0.0 if wanted is None else float(wanted))
        weight = t * layer.constant * layer.constant * max(parents.values()) * UP
        if alone:
            for parent in parents:
                self._add(parent, rows.new_zeros(0, math.prod(parent.shape)), slack=weight)
            return True
        pivot = _Pivot.of(demand, torch.full_like(demand[0], t / 2), len(rows), self.repair.spare)
        if pivot is None:
            return False
        for parent in parents:
            self._add(parent, rows.new_zeros(len(rows), math.prod(parent.shape)), slack=weight)
        self._eliminate(pivot, rows, {})
        return True

    def _eliminate(self, pivot: "_Pivot", hidden: Tensor, own: Mapping[Node, tuple[Tensor, float]]) -> None:
        """Maximise over v: rows X below those there are. own: what K has beside H^T B, and how far it may be off."""
        scaled = hidden * pivot.root
        size = len(pivot.factor)
        products = gamma(4 * (self.count + 10)) * _frobenius(scaled)
        solving = gamma(4 * (size + 2)) * _frobenius(pivot.factor)
        added: dict[Node, Tensor] = {}
        for node, base in self.rows.items():
            zero = not bool(base.any())
            right = base.new_zeros(size, base.shape[1]) if zero else scaled.T @ base
            error = products * _frobenius(base)
            if node in own:
                right = right + pivot.root[:, None] * own[node][0]
                error += own[node][1] + 4 * UNIT * _frobenius(right)
            added[node] = torch.linalg.solve_triangular(pivot.factor, right, upper=False)
            residual = (error + solving * _frobenius(added[node])) * UP
            self.slack[node] = (self.slack[node] + len(self.rows) * residual * residual / pivot.rho) * UP
        kept = torch.stack([part.any(1) for part in self.rows.values()]).any(0)
        for node, new in added.items():
            self.rows[node] = torch.cat((self.rows[node][kept], new))

    def _mixed(self, rows: Tensor, layer: SectorLayer, *, back: bool = False) -> tuple[Tensor, float]:
        """Rows in the coordinates of the sectors (`back`: from those of the values), and how far they may be off."""
        if layer.mixing is None:
            return rows, 0.0
        # Row vectors: G R^T for the answer, then G R for the input.
        image = layer.mixed(rows, back=not back)
        error = gamma(16 * (layer.shape[0] + 8)) * _frobenius(rows) * _frobenius(layer.mixing)
        return image, error * UP

    def _slack_as_rows(self, node: Node) -> None:
        """Slack that a bounded layer left becomes rows before a linear map spoils it."""
        slack = self.slack[node]
        rows = self.rows[node]
        width = rows.shape[1]
        if slack * width <= self.repair.main * _square(rows):
            return
        eye = torch.eye(width, dtype=rows.dtype, device=rows.device) * (math.sqrt(slack) * UP)
        for other, part in self.rows.items():
            new = eye if other is node else part.new_zeros(width, part.shape[1])
            self.rows[other] = torch.cat((part, new))
        self.slack[node] = FLOOR

    def compress(self) -> None:
        """At most as many rows as the cut has coordinates: G^T G + slack, raised by its rounding, is factorised."""
        width = sum(part.shape[1] for part in self.rows.values())
        if self.count <= width:
            return
        whole = torch.cat(list(self.rows.values()), dim=1)
        slack = torch.cat([part.new_full((part.shape[1],), self.slack[node]) for node, part in self.rows.items()])
        diagonal = whole.square().sum(0) + slack
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        scaled = whole * root
        gram = scaled.T @ scaled
        gram.diagonal().add_(slack * root * root)
        trace = float(gram.diagonal().sum())
        error = gamma(4 * (self.count + 16)) * (_square(scaled) + float((slack * root * root).max()))
        gram.diagonal().add_((definiteness_slack(width) * trace + error) * UP)
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            return
        fresh = factor.T / root
        places = torch.split(fresh, [part.shape[1] for part in self.rows.values()], dim=1)
        for node, part in zip(list(self.rows), places, strict=True):
            self.rows[node], self.slack[node] = part.contiguous(), FLOOR
            self._charge(node, 4 * UNIT * _frobenius(part))


@dataclass(frozen=True, eq=False)
class _Pivot:
    """P scaled to a diagonal of about 1 by `root`, and a factor L with root P root - L L^T >= rho for the exact P."""

    root: Tensor
    factor: Tensor
    rho: float

    @classmethod
    def of(cls, demand: Tensor, t: Tensor, count: int, spare: float) -> "_Pivot | None":
        """P = 2 diag(t) - demand; None where it is not definite enough. demand: H^T H + slack D^2, as computed from
        `count` rows. spare: rho is not below it."""
        diagonal = 2 * t - demand.diagonal()
        if not bool((diagonal > 0).all()) or not bool(torch.isfinite(diagonal).all()):
            return None
        root = diagonal.rsqrt()
        matrix = -(root[:, None] * demand * root)
        matrix.diagonal().add_(2 * t * root * root)
        size = len(t)
        columns = demand.diagonal().clamp_min(0) * root * root
        largest = float((2 * t * root * root).max())
        error = gamma(4 * (count + 12)) * (float(columns.sum()) * (1 + 1e-6) + largest)
        rounding = definiteness_slack(size) * float(matrix.diagonal().abs().sum())
        rho = max(rounding, spare)
        matrix.diagonal().sub_((rho + rounding + 2 * error) * UP)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
            return None
        return cls(root, factor, rho)


def _dominating(demand: Tensor, layer: SectorLayer, place: Tensor, sizes: Tensor | None) -> Tensor:
    """(ties,) multipliers with 2T - demand diagonally dominant in the scale of the sizes: admissible for certain."""
    q = torch.ones_like(demand[0])
    if sizes is not None:
        q = sizes[place].clamp_min(1e-6 * float(sizes.max()))
    largest = _largest_of_ties((demand.abs() @ q) / (2 * q), layer, place)
    return largest + 1e-12 * largest.max() + 1e-290


def _largest_of_ties(values: Tensor, layer: SectorLayer, place: Tensor) -> Tensor:
    """(ties,) the largest of the values of each tie, 0 for a tie without any."""
    return values.new_zeros(layer.ties).scatter_reduce(0, place, values, "amax")


def _frobenius(values: Tensor) -> float:
    """At or above the Frobenius norm."""
    return float(values.norm()) * (1 + gamma(values.numel() + 8)) if values.numel() else 0.0


def _square(values: Tensor) -> float:
    """Its square; infinite, and no error, where it overflows."""
    norm = _frobenius(values)
    return norm * norm * UP


def _largest(hermitian: Tensor) -> float:
    """At or above the largest eigenvalue of the stored positive semidefinite matrix, infinite where it overflows."""
    size = len(hermitian)
    if not bool(torch.isfinite(hermitian).all()):
        return math.inf
    top = float(torch.linalg.eigvalsh(hermitian)[-1])
    return max(0.0, top) + gamma(40 * size) * _frobenius(hermitian)
