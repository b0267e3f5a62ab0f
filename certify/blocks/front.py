"""The cut of an elimination: rows, slack and factor of its nodes, in float64 with every rounding error charged.

Rows form a batch (F, R, n): one matrix for the network itself, or one complex matrix for each frequency of a torus
(`torus_bound`), where a node's n coordinates are its channels and residues. The inequality of
`elimination` is summed over the batch; slack, factor and multipliers are common to the whole batch.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.increments import BoundedLayer, SectorLayer, squares
from robustres.certify.graph.network import Merge, Node
from robustres.certify.maps.linear_map import LinearMap, Shape
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm
from robustres.certify.proof.cholesky_proof import definiteness_slack
from robustres.certify.proof.largest_singular_value import frobenius_norms, gram, largest_eigenvalue, real_parts
from robustres.numerics import gamma

UNIT = 2.0**-53
FLOOR = 1e-250  # slack added everywhere, far above the underflow errors of products
UP = 1 + 2.0**-40  # covers the rounding of the few scalar operations that make a slack
SHARES = 16.0  # how slack is distributed
PULLED_ENTRIES = 2**17  # entries of the rows that a map is applied to at once, which then stay in the cache
MIXTURES = (1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # shares of the certainly admissible multipliers


@dataclass(frozen=True)
class Repair:
    """How nearly admissible multipliers are made admissible: they are raised by `lift` and mixed with a share of those
    from diagonal dominance, which is at least `share` and as large as the layer requires.

    loss: relative loss of each step that separates the squared rounding errors from the rows. spare: part of each
    pivot's smallest eigenvalue that is reserved beyond its own rounding error. Both cost little and keep the slack
    small. main: slack above this share of the rows is converted to rows before a linear map amplifies it.
    """

    lift: float = 1e-4
    share: float = 1e-5
    loss: float = 1e-9
    spare: float = 0.0
    main: float = 1e-6


@dataclass(frozen=True, eq=False)
class Pulled:
    """rows: (F, R, n) before a linear map, computed from those after it. error: bound of their error, relative to the
    Frobenius norm of the rows after it. steep: upper bound of the norm of the map."""

    rows: Tensor
    error: float
    steep: float


class Space:
    """The space of the rows: that of the network itself, one matrix whose rows have the shape of the node's values."""

    def shape(self, node: Node) -> Shape:
        """The shape of a row of the node, channels first."""
        return node.shape

    def pull(self, node: Node, map_: LinearMap, rows: Tensor) -> Pulled:
        """Rows (F, R, n) before the map of a linear node: its adjoint of every row."""
        image = adjoint_rows(map_, rows.flatten(0, 1)).reshape(*rows.shape[:2], map_.in_size)
        steep = absolute_norm(map_)
        return Pulled(image, gamma(ALGORITHM_FACTOR * map_.roundings) * steep * UP, steep)


def adjoint_rows(map_: LinearMap, rows: Tensor) -> Tensor:
    """The adjoint of a map applied to rows (R, out_size), a part at a time; (R, in_size)."""
    image = rows.new_empty(len(rows), map_.in_size)
    step = max(1, PULLED_ENTRIES // max(map_.in_size, map_.out_size))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        image[start : start + step] = map_.adjoint(part.reshape(-1, *map_.out_shape)).reshape(len(part), -1)
    return image


class Front:
    """The current cut: rows (F, R, n) and slack of each of its nodes, and the factor.

    chosen: multipliers (ties,) of the layers eliminated so far, which the other parts of the batch must share.
    """

    def __init__(
        self,
        output: Node,
        rows: Tensor,
        repair: Repair,
        space: Space,
        slack: float = 0.0,
        chosen: dict[Node, Tensor] | None = None,
    ) -> None:
        self.repair, self.space = repair, space
        self.chosen: dict[Node, Tensor] = {} if chosen is None else chosen
        self.rows: dict[Node, Tensor] = {output: rows}
        self.slack: dict[Node, float] = {output: slack * UP + FLOOR}
        self.factor = 1.0

    @property
    def count(self) -> int:
        """Number of rows."""
        return next(iter(self.rows.values())).shape[1]

    def open(self, total: Node) -> None:
        """Let the cut begin with one more value for each row, which is added to it."""
        (rows,) = self.rows.values()
        self._add(total, torch.eye(self.count, dtype=rows.dtype, device=rows.device).expand(len(rows), -1, -1))

    def take(self, total: Node, node: Node, part: Tensor) -> None:
        """These values are part (R, n) times the change of a node plus the rest, which is what `total` means from now
        on.

        |a + b|^2 <= (1 + SHARES) |a|^2 + (1 + 1 / SHARES) |b|^2 distributes the slack.
        """
        rows, slack, size = self.rows[total], self.slack[total], frobenius(part)
        self.slack[total] = slack * (1 + 1 / SHARES) * UP
        error = gamma(4 * (len(part) + 2)) * frobenius(rows) * size * UP
        self._add(node, rows @ part, error=error, slack=slack * (1 + SHARES) * size * size * UP)

    def close(self, total: Node) -> None:
        """Nothing is left of these values."""
        del self.rows[total], self.slack[total]

    def _charge(self, node: Node, error: float) -> None:
        """The exact rows of a node lie within `error` of the stored ones, in the spectral norm of each matrix."""
        if error > 0:
            self.factor *= (1 + self.repair.loss) * UP
            self.slack[node] = (self.slack[node] + error * error / self.repair.loss) * UP

    def _add(self, node: Node, rows: Tensor, *, error: float = 0.0, slack: float = 0.0) -> None:
        """Add rows to a node of the cut, or to a node that enters it."""
        if node in self.rows:
            rows = rows + self.rows[node]
            error += 2 * UNIT * frobenius(rows)
            slack += self.slack[node]
        self.rows[node], self.slack[node] = rows, slack * UP + FLOOR
        self._charge(node, error)

    def linear(self, node: Node, map_: LinearMap) -> None:
        """w = W z."""
        self._slack_as_rows(node)
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        pulled = self.space.pull(node, map_, rows)
        error = pulled.error * frobenius(rows) * UP
        self._add(node.inputs[0], pulled.rows, error=error, slack=slack * pulled.steep * pulled.steep)

    def merge(self, node: Node, piece: Merge) -> None:
        """w = z_1 + z_2 + ..., or all of them side by side."""
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        if piece.kind == "sum":
            for parent in node.inputs:
                self._add(parent, rows, slack=slack * len(node.inputs))
            return
        assert piece.axis is not None
        lengths = [self.space.shape(parent)[piece.axis] for parent in node.inputs]
        parts = torch.split(rows.reshape(*rows.shape[:2], *self.space.shape(node)), lengths, dim=2 + piece.axis)
        for parent, part in zip(node.inputs, parts, strict=True):
            self._add(parent, part.flatten(2), slack=slack)

    def activation(self, node: Node, layer: SectorLayer, point: FixedPoint) -> bool:
        """w = a z + D v. Returns False if no multipliers are admissible."""
        rows, slack = self.rows.pop(node), self.slack.pop(node) * UP
        rows, turned = self._mixed(rows, layer, back=True)
        width = layer.width
        free = (width > 0).nonzero().flatten()
        straight = rows * layer.lower
        hidden = (rows * width)[..., free]
        steepest = float(layer.lower.abs().max())
        error = turned * (steepest + float(width.max()))
        error += 2 * UNIT * (frobenius(straight) + frobenius(hidden))
        parent = node.inputs[0]
        straight, back = self._mixed(straight, layer)
        self._add(parent, straight, error=(error + back) * UP, slack=slack * steepest * steepest)
        if not len(free):
            return True
        place = layer.tie[free]
        a, d = layer.lower[free], width[free]
        demand = gram(hidden)
        diagonal_of(demand).add_(slack * d * d)
        wanted = (self.chosen[node],) if node in self.chosen else candidates(node, demand, layer, point, self.repair)
        for multipliers in wanted:
            t = multipliers[place]
            pivot = Pivot.of(demand, t, self.count, self.repair.spare)
            if pivot is not None:
                self.chosen[node] = multipliers
                break
        else:
            return False
        own = torch.zeros(1, len(free), len(width), dtype=t.dtype, device=rows.device)
        own[0, torch.arange(len(free)), free] = t + slack * a * d
        own, moved = self._mixed(own, layer)
        size = float((t + slack * a.abs() * d).mul(pivot.root).norm(dim=1).max())
        self._eliminate(pivot, hidden, {parent: (own, size * (16 * UNIT) + moved * float(pivot.root.max()))})
        return True

    def bounded(self, node: Node, layer: BoundedLayer, point: FixedPoint) -> bool:
        """|w| <= c |z|."""
        rows, slack = self.rows.pop(node), self.slack.pop(node)
        parents = Counter(node.inputs)  # |z|^2 counts an input as often as it occurs
        demand = gram(rows)
        diagonal_of(demand).add_(slack)
        alone = not self.rows
        if not math.isfinite(layer.constant):
            return False
        least = _largest(demand) + gamma(4 * (rows.shape[1] + 16)) * (_square(rows) + slack)
        wanted = point.multipliers.get(node)
        t = least if alone else (1 + 1e-3) * max(least, 0.0 if wanted is None else float(wanted))
        weight = t * layer.constant * layer.constant * max(parents.values()) * UP
        if alone:
            for parent in parents:
                self._add(parent, rows.new_zeros(len(rows), 0, self._size(parent)), slack=weight)
            return True
        pivot = Pivot.of(demand, torch.full_like(diagonal_of(demand)[0].real, t / 2), rows.shape[1], self.repair.spare)
        if pivot is None:
            return False
        for parent in parents:
            self._add(parent, rows.new_zeros(*rows.shape[:2], self._size(parent)), slack=weight)
        self._eliminate(pivot, rows, {})
        return True

    def _eliminate(self, pivot: "Pivot", hidden: Tensor, own: Mapping[Node, tuple[Tensor, float]]) -> None:
        """Maximise over v, which appends the rows X. own: the part of K besides H^T B, and a bound of its error."""
        scaled = hidden * pivot.root[:, None]
        size = pivot.factor.shape[-1]
        products = gamma(4 * (self.count + 10)) * frobenius(scaled)
        solving = gamma(4 * (size + 2)) * frobenius(pivot.factor)
        added: dict[Node, Tensor] = {}
        for node, base in self.rows.items():
            zero = not bool((base != 0).any())
            right = base.new_zeros(len(base), size, base.shape[2]) if zero else scaled.mH @ base
            error = products * frobenius(base)
            if node in own:
                right = right + pivot.root[..., None] * own[node][0]
                error += own[node][1] + 4 * UNIT * frobenius(right)
            added[node] = torch.linalg.solve_triangular(pivot.factor, right, upper=False)
            residual = (error + solving * frobenius(added[node])) * UP
            self.slack[node] = (self.slack[node] + len(self.rows) * residual * residual / pivot.rho) * UP
        kept = torch.stack([(part != 0).any(2).any(0) for part in self.rows.values()]).any(0)
        for node, new in added.items():
            self.rows[node] = torch.cat((self.rows[node][:, kept], new), dim=1)

    def _mixed(self, rows: Tensor, layer: SectorLayer, *, back: bool = False) -> tuple[Tensor, float]:
        """Convert rows from sector coordinates to those of the values (`back`: reversed), with an error bound."""
        if layer.mixing is None:
            return rows, 0.0
        # Row vectors: G R^T for the output, then G R for the input.
        image = layer.mixed(rows.flatten(0, 1), back=not back).reshape(rows.shape)
        error = gamma(16 * (layer.shape[0] + 8)) * frobenius(rows) * frobenius(layer.mixing)
        return image, error * UP

    def _slack_as_rows(self, node: Node) -> None:
        """Convert the slack of a bounded layer to rows before a linear map amplifies it."""
        slack = self.slack[node]
        rows = self.rows[node]
        width = rows.shape[2]
        if slack * width <= self.repair.main * _square(rows):
            return
        eye = torch.eye(width, dtype=rows.dtype, device=rows.device) * (math.sqrt(slack) * UP)
        for other, part in self.rows.items():
            new = eye.expand(len(rows), -1, -1) if other is node else part.new_zeros(len(rows), width, part.shape[2])
            self.rows[other] = torch.cat((part, new), dim=1)
        self.slack[node] = FLOOR

    def compress(self) -> None:
        """At most as many rows as coordinates of the cut, by factorising G^* G + slack, raised by its rounding."""
        width = sum(part.shape[2] for part in self.rows.values())
        if self.count <= width:
            return
        whole = torch.cat(list(self.rows.values()), dim=2)
        sizes = [part.shape[2] for part in self.rows.values()]
        slack = torch.cat(
            [torch.full((n,), s, dtype=torch.float64) for n, s in zip(sizes, self.slack.values(), strict=True)]
        )
        slack = slack.to(whole.device)
        diagonal = squares(whole).sum(1) + slack
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        scaled = whole * root[:, None]
        square = gram(scaled)
        diagonal_of(square).add_(slack * root * root)
        trace = float(diagonal_of(square).real.sum(1).max())
        error = gamma(4 * (self.count + 16)) * (_square(scaled) + float((slack * root * root).max()))
        diagonal_of(square).add_((definiteness_slack(width) * trace + error) * UP)
        factor, info = torch.linalg.cholesky_ex(square)
        if bool(info.any()):
            return
        fresh = factor.mH / root[:, None]
        for node, part in zip(list(self.rows), torch.split(fresh, sizes, dim=2), strict=True):
            self.rows[node], self.slack[node] = part.contiguous(), FLOOR
            self._charge(node, 4 * UNIT * frobenius(part))

    def _size(self, node: Node) -> int:
        return math.prod(self.space.shape(node))


def candidates(node: Node, demand: Tensor, layer: SectorLayer, point: FixedPoint, repair: Repair) -> Iterator[Tensor]:
    """Multipliers (ties,) of a layer for which 2T - demand should be definite, from the closest to those of the search
    to certainly admissible ones. demand: (F, k, k), of the coordinates whose slopes vary."""
    place = layer.tie[layer.width > 0]
    multipliers = point.multipliers.get(node)
    certain = _dominating(demand, layer, place, point.sizes.get(node))
    least = _largest_of_ties(diagonal_of(demand).real.amax(0) / 2, layer, place)
    lift = 1 + repair.lift
    for share in (repair.share, *(more for more in MIXTURES if more > repair.share)):
        near = certain if multipliers is None else (1 - share) * multipliers + share * 1.01 * certain
        yield lift * near.maximum(least)


@dataclass(frozen=True, eq=False)
class Pivot:
    """P (F, k, k) scaled to diagonals of about 1 by `root` (F, k), and L with root P root - L L^* >= rho, P exact."""

    root: Tensor
    factor: Tensor
    rho: float

    @classmethod
    def of(cls, demand: Tensor, t: Tensor, count: int, spare: float, *, error: float = 0.0) -> "Pivot | None":
        """P = 2 diag(t) - demand; None if it is not sufficiently definite. demand: H^* H + slack D^2, computed from
        `count` rows. spare: lower bound of rho. error: of the scaled demand besides that, in the spectral norm."""
        diagonal = 2 * t - diagonal_of(demand).real
        if not bool((diagonal > 0).all()) or not bool(torch.isfinite(diagonal).all()):
            return None
        root = diagonal.rsqrt()
        matrix = (demand * -root[..., None]).mul_(root[:, None])
        diagonal_of(matrix).add_(2 * t * root * root)
        size = len(t)
        columns = diagonal_of(demand).real.clamp_min(0) * root * root
        largest = float((2 * t * root * root).max())
        error += gamma(4 * (count + 12)) * (float(columns.sum(1).max()) * (1 + 1e-6) + largest)
        rounding = definiteness_slack(size) * float(diagonal_of(matrix).abs().sum(1).max())
        rho = max(rounding, spare)
        diagonal_of(matrix).sub_((rho + rounding + 2 * error) * UP)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()) or not bool(torch.isfinite(diagonal_of(factor).real).all()):
            return None
        return cls(root, factor, rho)


def diagonal_of(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def _dominating(demand: Tensor, layer: SectorLayer, place: Tensor, sizes: Tensor | None) -> Tensor:
    """Multipliers (ties,) with 2T - demand diagonally dominant in the scale of the sizes, hence admissible."""
    q = torch.ones(demand.shape[-1], dtype=torch.float64, device=demand.device)
    if sizes is not None:
        q = sizes.to(q)[place].clamp_min(1e-6 * float(sizes.max()))
    largest = _largest_of_ties((demand.abs() @ q).amax(0) / (2 * q), layer, place)
    return largest + 1e-12 * largest.max() + 1e-290


def _largest_of_ties(values: Tensor, layer: SectorLayer, place: Tensor) -> Tensor:
    """The largest value of each tie (ties,), 0 for an empty tie."""
    return values.new_zeros(layer.ties).scatter_reduce(0, place, values, "amax")


def frobenius(values: Tensor) -> float:
    """Upper bound of the Frobenius norm of every matrix of a batch, or of a single matrix."""
    if not values.numel():
        return 0.0
    count = math.prod(values.shape[-2:])
    norms = frobenius_norms(values if values.ndim == 3 else values[None])
    return float(norms.max()) * (1 + gamma(2 * count + 16))


def _square(values: Tensor) -> float:
    """The square of a number, infinite (and no error) on overflow."""
    norm = frobenius(values)
    return norm * norm * UP


def _largest(hermitian: Tensor) -> float:
    """Upper bound of the largest eigenvalue of the stored positive semidefinite matrices, infinite on overflow."""
    if not bool(torch.isfinite(real_parts(hermitian)).all()):
        return math.inf
    return max(0.0, largest_eigenvalue(hermitian))
