"""A network of convolutions laid on tori, where multipliers per channel decouple the frequencies.

A difference of two images, zero outside the image, is a signal on a torus. If the torus is so large that no kernel
reaches around it, the zero-padded convolution is the circular one, cropped to the image (`fourier.torus`). An
activation that follows can do the cropping: outside the image its output is 0, which corresponds to the slope 0. Its
interval of slopes is extended to contain 0 if another convolution reads beyond the image. If any other value that was
not cropped is read beyond the image, a mask w = m z with m in [0, 1] is inserted. All inequalities are summed over the
positions of a channel, so a bound of the network on the torus, whose set of signals is larger, is also one of the
original network, and its form is block-diagonal in frequency.

A stride couples the frequencies that it folds onto each other. If the coupled matrices become too large, and at
pooling of which only a constant is known, the network is cut in two: |w_c| <= constant |z_c| for every channel c of the
one value on all paths. Each side of the cut has its own torus.

The last layers, from the last image on, are unchanged (`tail`). If they depend only on the sums of that image's
channels, they involve only frequency 0 of the torus.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.blocks.increments import (
    BoundedLayer,
    Increment,
    SectorLayer,
    increments,
    spread,
    windows_of_residues,
)
from robustres.certify.fourier.circular import wrapped
from robustres.certify.fourier.torus import Demand, Torus, passage, smallest
from robustres.certify.graph.network import Linear, Merge, Node, Piece, Source, chain, dominators
from robustres.certify.maps.convolution import separable
from robustres.certify.maps.linear_map import (
    LinearMap,
)
from robustres.certify.maps.nonlinear import MaxPool, Opaque

EVERYWHERE = (-(10**9), 10**9)
CONSTANT = 1e-9  # relative deviation up to which a row is taken as one number per channel; the deviation is charged

Lag = tuple[int, int]
Rate = tuple[Fraction, Fraction]
Placing = Callable[[Node, Piece, tuple[Node, ...]], Node]


class NotLaidError(Exception):
    """The reason, as a phrase, why a network cannot be laid on tori."""


@dataclass(frozen=True, eq=False)
class Region:
    """order: the nodes on one torus, from the region's input to its output. multiplicity: for
    every node, the number of fine points per coarse point on each axis."""

    order: list[Node]
    torus: Torus
    multiplicity: dict[Node, Lag]

    def channels(self, node: Node) -> int:
        """Number of coordinates of a node at one coarse frequency."""
        return node.shape[0] * math.prod(self.multiplicity[node])


@dataclass(frozen=True, eq=False)
class TorusNetwork:
    """order, layers: the whole network on its tori, ready for `search`. regions: from the output to the input.

    tail: the nodes after the last region, starting with the one that represents its output. constant: whether the tail
    depends only on the sums of the channels; otherwise it starts at a cut, |w_c| <= |z_c|.
    """

    order: Sequence[Node]
    layers: Mapping[Node, Increment]
    regions: Sequence[Region]
    tail: Sequence[Node]
    constant: bool


def on_tori(output: Node, *, widest: int) -> TorusNetwork:
    """Lay a simplified network on tori, with at most `widest` coupled coordinates where an activation is eliminated.

    Raises NotLaidError if the network has no such form.
    """
    return _Laying(output, widest).network()


def image_on_tori(output: Node) -> tuple[list[Region], dict[Node, Increment]]:
    """A network from images to images on its smallest torus, untwisted and twisted by half a turn, and its layers.

    Raises NotLaidError if the network has no such form.
    """
    laying = _Laying(output, widest=0, wrap=False)
    plan = laying.plan(0, len(laying.passed) - 1)
    region = laying.region(plan, None, None)
    phases = [(Fraction(0),) if wraps else (Fraction(0), Fraction(1, 2)) for wraps in plan.wraps]
    tori = [Torus(region.torus.points, (first, second)) for first in phases[0] for second in phases[1]]
    return [replace(region, torus=torus) for torus in tori], laying.laid


@dataclass
class _Plan:
    """How the nodes between two nodes on all paths are laid on a torus, determined before anything is built.

    rate: points per point of the first node. clean: whether the value is 0, or may be taken as 0, outside the image.
    masked: nodes that are not clean and whose value must be cropped for a later node. demands: (rate, points needed) on
    each axis.
    """

    nodes: list[Node]
    rate: dict[Node, Rate] = field(default_factory=dict)
    clean: dict[Node, bool] = field(default_factory=dict)
    masked: set[Node] = field(default_factory=set)
    demands: tuple[list[Demand], list[Demand]] = field(default_factory=lambda: ([], []))
    wraps: list[bool] = field(default_factory=lambda: [False, False])

    def torus(self) -> tuple[Torus, Lag]:
        """The smallest torus, and the multiplicity of the first node."""
        points, multiplicities = [], []
        for axis in (0, 1):
            multiplicity, count = smallest(self.demands[axis])
            side = self.nodes[0].shape[1 + axis]
            if self.wraps[axis] and count * multiplicity != side:
                raise NotLaidError("circular padding and zero padding that do not fit one torus")
            points.append(count)
            multiplicities.append(multiplicity)
        return Torus((points[0], points[1])), (multiplicities[0], multiplicities[1])


class _Laying:
    def __init__(self, output: Node, widest: int, *, wrap: bool = True) -> None:
        self.output, self.widest = output, widest
        self.wrap = wrap  # whether the maps are wrapped around the torus, for a search on all its positions
        self.original = output.ordered()
        self.layers = increments(self.original, sharing="channel")
        self.passed = [self.original[0], *chain(dominators(self.original), self.original[0], output)]
        self.order: list[Node] = []
        self.laid: dict[Node, Increment] = {}

    def network(self) -> TorusNetwork:
        """Regions from the last image down to the input, built from the input up, and the tail."""
        image = next((node for node in reversed(self.passed) if _is_image(node)), None)
        if image is None or not _is_image(self.original[0]):
            raise NotLaidError("no image lies on all of its paths" if image is None else "its input is not an image")
        if image is self.output:
            raise NotLaidError("its output is an image")
        plans, joints = self._plans(self.passed.index(image))
        constant = self._reads_sums(image)
        if constant and not plans[0].clean[image]:
            plans[0].masked.add(image)
        regions: list[Region] = []
        for plan, joint in zip(reversed(plans), reversed(joints), strict=True):
            regions.insert(0, self.region(plan, joint, regions[0].order[-1] if regions else None))
        tail = self._tail(image, regions[0].order[-1], constant)
        return TorusNetwork(self.order, self.laid, regions, tail, constant)

    def _plans(self, top: int) -> tuple[list[_Plan], list[BoundedLayer | None]]:
        """The plans of the regions, from the output, and the cut below each (None at the input)."""
        plans: list[_Plan] = []
        joints: list[BoundedLayer | None] = []
        while True:
            bottom, best = top, self.plan(top, top)
            while bottom > 0 and not self._is_bounded(bottom):
                longer = self.plan(bottom - 1, top)
                if self._coupled(longer) > self.widest:
                    break
                bottom, best = bottom - 1, longer
            plans.append(best)
            if bottom == 0:
                joints.append(None)
                return plans, joints
            if self._is_bounded(bottom):
                joints.append(self._pooling(bottom))
                top = bottom - 1
            elif bottom == top:
                raise NotLaidError(f"one layer couples more than {self.widest:,} coordinates")
            else:
                joints.append(BoundedLayer(1.0, self.passed[bottom].shape, channelwise=True))
                top = bottom

    def _is_bounded(self, place: int) -> bool:
        return isinstance(self.layers.get(self.passed[place]), BoundedLayer)

    def _pooling(self, place: int) -> BoundedLayer:
        """Maximum pooling as a cut, with the windows of each pixel counted if its residues may be coupled."""
        node, below = self.passed[place], self.passed[place - 1]
        layer = self.layers[node]
        assert isinstance(layer, BoundedLayer)
        if node.inputs != (below,) or not isinstance(node.piece, MaxPool) or len(node.piece.windows) != 2:
            raise NotLaidError(f"{_named(node)} has no bound for every channel")
        counts = windows_of_residues(node.piece.windows, below.shape)
        if layer.constant == 1 or below.shape[0] * counts.numel() > self.widest:
            return replace(layer, channelwise=True)
        return BoundedLayer(1.0, node.shape, channelwise=True, counts=counts)

    def _between(self, low: Node, high: Node) -> list[Node]:
        """The nodes between two nodes on all paths, both included."""
        after = set(low.ordered()) - {low}
        return [node for node in high.ordered() if node not in after]

    def plan(self, bottom: int, top: int) -> _Plan:
        """The plan of everything between two nodes on all paths."""
        plan = _Plan(self._between(self.passed[bottom], self.passed[top]))
        first = plan.nodes[0]
        if len(first.shape) != 3:
            raise NotLaidError(f"{_named(first)} is not an image")
        plan.rate[first], plan.clean[first] = (Fraction(1), Fraction(1)), True
        for axis in (0, 1):
            plan.demands[axis].append((Fraction(1), first.shape[1 + axis]))
        for node in plan.nodes[1:]:
            self._extend(plan, node)
        counts = self._counts_above(top)
        for axis, stride in enumerate(() if counts is None else counts.shape):
            plan.demands[axis].append((plan.rate[plan.nodes[-1]][axis] / stride, 1))
        return plan

    def _counts_above(self, place: int) -> Tensor | None:
        """The counts of a maximum pooling that is the cut above a node on all paths."""
        pooled = self.wrap and place + 1 < len(self.passed) and self._is_bounded(place + 1)
        return self._pooling(place + 1).counts if pooled and _is_image(self.passed[place + 1]) else None

    def _extend(self, plan: _Plan, node: Node) -> None:
        parents, layer = node.inputs, self.layers.get(node)
        if len(node.shape) != 3:
            raise NotLaidError(f"{_named(node)} is not an image")
        plan.rate[node] = plan.rate[parents[0]]
        if isinstance(node.piece, Linear):
            self._pass(plan, node, node.piece.map)
        elif isinstance(layer, SectorLayer):
            plan.clean[node] = plan.clean[parents[0]] or bool((layer.lower <= 0).all() and (layer.upper >= 0).all())
        elif isinstance(node.piece, Merge) and layer is None and (node.piece.kind == "sum" or node.piece.axis == 0):
            if any(plan.rate[parent] != plan.rate[node] for parent in parents):
                raise NotLaidError("it joins images of different resolution")
            plan.clean[node] = all(plan.clean[parent] for parent in parents)
        else:
            raise NotLaidError(f"{_named(node)} has no form on a torus")

    def _pass(self, plan: _Plan, node: Node, map_: LinearMap) -> None:
        """Add a linear map: its rate, whether it reaches beyond the image, and the torus it requires."""
        (parent,) = node.inputs
        clean, rates = True, []
        for axis in (0, 1):
            image = (0, parent.shape[1 + axis] - 1)
            read_cut = plan.clean[parent] or parent in plan.masked
            found = passage(map_, axis, image if read_cut else EVERYWHERE)
            if found is None and not read_cut:
                plan.masked.add(parent)
                read_cut = True
                found = passage(map_, axis, image)
            if found is None:
                raise NotLaidError(f"{_named(node)} is not shift-invariant")
            inner, outer = plan.rate[parent][axis], plan.rate[parent][axis] * found.rates[-1]
            side, (low, high) = node.shape[1 + axis], found.support
            inside = low >= 0 and high < side
            clean &= inside
            plan.demands[axis].append((outer, max(side, high + 1, side - low) if read_cut else side))
            plan.demands[axis].extend(found.demands(inner))
            plan.wraps[axis] |= found.wraps
            rates.append(outer)
        plan.rate[node], plan.clean[node] = (rates[0], rates[1]), clean

    def _coupled(self, plan: _Plan) -> int:
        """The largest number of coordinates of an activation at one coarse frequency."""
        _, (first, second) = plan.torus()
        width = 0
        for node in plan.nodes[1:]:
            if node in self.layers or node in plan.masked:
                rate = plan.rate[node]
                width = max(width, int(node.shape[0] * rate[0] * first * rate[1] * second))
        return width

    def region(self, plan: _Plan, joint: BoundedLayer | None, below: Node | None) -> Region:
        """The nodes of a plan on its torus. below: the output of the region before it."""
        torus, base = plan.torus()
        ground = Region([], torus, {})
        residues = {node: (int(r * base[0]), int(s * base[1])) for node, (r, s) in plan.rate.items()}

        def place(node: Node, piece: Piece, inputs: tuple[Node, ...]) -> Node:
            """A copy of an original node on all positions of the torus."""
            shape = (node.shape[0], *(r * n for r, n in zip(residues[node], torus.points, strict=True)))
            new = replace(node, piece=piece, inputs=inputs, shape=shape)
            ground.order.append(new)
            ground.multiplicity[new] = residues[node]
            return new

        first = plan.nodes[0]
        if joint is None or below is None:
            entrance = place(first, Source(), ())
        else:
            joint_piece = first.piece if isinstance(first.piece, Opaque) else Merge("concatenation")
            entrance = place(first, joint_piece, (below,))
            counts = joint.counts
            if counts is not None:
                counts = counts.repeat(*(side // n for side, n in zip(below.shape[1:], counts.shape, strict=True)))
            self.laid[entrance] = replace(joint, shape=entrance.shape, counts=counts)
        laid, cuts = {first: entrance}, dict[Node, Node]()
        for node in plan.nodes[1:]:
            read = tuple(laid[parent] for parent in node.inputs)
            piece = node.piece
            if isinstance(piece, Linear):
                (parent,) = node.inputs
                if parent in plan.masked and parent not in self.layers:
                    read = (self._mask(place, parent, laid[parent], cuts),)
                if self.wrap:
                    piece = Linear(wrapped(piece.map, (read[0].shape[1], read[0].shape[2])))
            laid[node] = place(node, piece, read)
            if self.wrap and isinstance(piece, Linear) and piece.map.out_shape != laid[node].shape:
                raise NotLaidError(f"{_named(node)} does not fit its torus")
            layer = self.layers.get(node)
            if isinstance(layer, SectorLayer):
                self.laid[laid[node]] = spread(layer, laid[node].shape, cut=node in plan.masked)
        if plan.nodes[-1] in plan.masked and plan.nodes[-1] not in {*cuts, *self.layers}:
            self._mask(place, plan.nodes[-1], laid[plan.nodes[-1]], cuts)
        self.order += ground.order
        return ground

    def _mask(self, place: Placing, node: Node, value: Node, cuts: dict[Node, Node]) -> Node:
        """w = m z with m in [0, 1], created once for all nodes that read it."""
        if node not in cuts:
            cuts[node] = place(node, Merge("concatenation"), (value,))
            channels, positions = node.shape[0], math.prod(value.shape[1:])
            tie = torch.arange(channels).repeat_interleave(positions)
            zeros = torch.zeros(len(tie), dtype=torch.float64)
            self.laid[cuts[node]] = SectorLayer(zeros, zeros + 1, tie, channels, value.shape)
        return cuts[node]

    def _tail(self, image: Node, value: Node, constant: bool) -> list[Node]:
        """The nodes after the last image, on the image itself; values outside it are added to it or omitted."""
        sides = value.shape[1:]
        rows, columns = (_folding(side, points, constant) for side, points in zip(image.shape[1:], sides, strict=True))
        entrance = replace(image, piece=Linear(separable(rows, columns, image.shape[0])), inputs=(value,))
        tail = [entrance]
        if not constant:
            tail = [replace(image, piece=Merge("concatenation"), inputs=(entrance,))]
            self.laid[tail[0]] = BoundedLayer(1.0, image.shape, channelwise=True)
            self.order.append(entrance)
        made = {image: tail[0]}
        after = self._after(image)
        own = increments(after)
        for node in after:
            made[node] = replace(node, inputs=tuple(made[parent] for parent in node.inputs))
            tail.append(made[node])
            if node in own:
                self.laid[made[node]] = own[node]
        self.order += tail
        return tail

    def _after(self, image: Node) -> list[Node]:
        before = set(image.ordered())
        return [node for node in self.original if node not in before]

    def _reads_sums(self, image: Node) -> bool:
        """Whether everything after the image depends only on the sums of its channels; deviations are charged later."""
        for node in self._after(image):
            if image in node.inputs:
                if not isinstance(node.piece, Linear):
                    return False
                map_ = node.piece.map
                draw = torch.Generator().manual_seed(0)
                y = torch.randn(2, *map_.out_shape, generator=draw, dtype=torch.float64).to(map_.device)
                row = map_.adjoint(y).flatten(2)
                if float((row.amax(2) - row.amin(2)).max()) > CONSTANT * float(row.abs().max()):
                    return False
        return True


def _folding(side: int, points: int, constant: bool) -> Tensor:
    """(side, points): adds each point of the torus to one of the image, or omits those outside it."""
    matrix = torch.zeros(side, points, dtype=torch.float64)
    kept = torch.arange(points if constant else side)
    matrix[kept % side, kept] = 1
    return matrix


def _is_image(node: Node) -> bool:
    return len(node.shape) == 3 and node.shape[1] * node.shape[2] > 1


def _named(node: Node) -> str:
    return node.path or node.origin.name
