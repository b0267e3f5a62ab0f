"""Bounds of every piece of a network, composed along its dominators.

Between two consecutive nodes shared by every path there is either one piece, or a region that ends in a merge.
Constants multiply along a path; they add for a sum of paths, and their squares add for concatenated paths. Each region
is bounded as a map from its entry, whatever it contains, so every acyclic network is covered, including nested blocks.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

import torch

from robustres.certify.blocks.joint_bound import DEFAULT_EFFORT, branch_bound
from robustres.certify.blocks.parallel_paths import Region, region
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Product, chain, dominators
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.written import Written
from robustres.certify.norms.linf_norm import linf_norm
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Bound, Guarantee, all_hold, product
from robustres.numerics import rounded_up, sum_up


@dataclass(eq=False)
class Bounder:
    """Bounds the pieces of one network in one norm, each of them once.

    joint: also bound residual blocks jointly (l2 only), with `effort` seconds of a nominal core for each.
    seconds: time guide for each linear map. delta: failure probability that probabilistic methods may use for each
    linear map; None allows deterministic methods only. generator: of their random starts, as in `spectral_norm`.
    watch: called with the number of pieces bounded so far and the total number.
    known: rows by the place of their last node in `order`, which are not computed again; new ones are added.
    """

    order: list[Node]
    norm: Literal["l2", "linf"] = "l2"
    joint: bool = True
    effort: float = DEFAULT_EFFORT
    seconds: float | None = None
    delta: float | None = None
    generator: torch.Generator | None = None
    watch: Callable[[int, int], None] | None = None
    known: dict[int, BlockRow] = field(default_factory=dict)
    _dominator: dict[Node, Node] = field(init=False)
    _place: dict[Node, int] = field(init=False)
    _norms: dict[LinearMap, Bound] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._dominator = dominators(self.order)
        self._place = {node: place for place, node in enumerate(self.order)}

    def rows(self, end: Node) -> list[tuple[Node, Node, BlockRow]]:
        """Entry, exit and row of each piece from the source to `end`; 1-Lipschitz activations have none."""
        nodes = chain(self._dominator, self.order[0], end)
        pieces = []
        for done, node in enumerate(nodes, start=1):
            pieces.append((self._dominator[node], node, self.row(node)))
            if self.watch is not None:
                self.watch(done, len(nodes))
        return [piece for piece in pieces if not (isinstance(piece[1].piece, Elementwise) and piece[2].upper == 1)]

    def row(self, node: Node) -> BlockRow:
        """The piece that ends in `node`, from its immediate dominator."""
        place = self._place[node]
        if place not in self.known:
            start = perf_counter()
            if isinstance(node.piece, Merge):
                row = self._region_row(region(self._dominator, node), start)
            elif isinstance(node.piece, Product):
                row = self._product_row(node, node.piece, start)
            else:
                row = self._piece_row(node, start)
            self.known[place] = row
        return self.known[place]

    def norm_of(self, map_: LinearMap) -> Bound:
        """The operator norm of a linear map in the norm of this bounder; every map is bounded once."""
        if map_ not in self._norms:
            if self.norm == "l2":
                self._norms[map_] = spectral_norm(
                    map_, delta=self.delta, seconds=self.seconds, generator=self.generator
                )
            else:
                self._norms[map_] = Bound(0.0, linf_norm(map_), "row sums")
        return self._norms[map_]

    def _certain_norm(self, map_: LinearMap) -> float:
        """A deterministic bound on the norm, shared with the rows if they have one."""
        known = self._norms.get(map_)
        if known is None or known.guarantee != Guarantee():
            known = spectral_norm(map_, seconds=self.seconds, lower_steps=1)
            self._norms.setdefault(map_, known)
        return known.upper

    def _product_row(self, node: Node, piece: Product, start: float) -> BlockRow:
        """sup |f| L(g) + sup |g| L(f)."""
        entry = self._dominator[node]
        first, second = (self._operand(chain(self._dominator, entry, end)) for end in node.inputs)
        upper = rounded_up(piece.largest[0] * second.upper + piece.largest[1] * first.upper, 4)
        rule = Bound(0.0, upper, "product rule", first.guarantee & second.guarantee)
        return _row(node.path or node.origin.name, "product", [rule], start)

    def _piece_row(self, node: Node, start: float) -> BlockRow:
        name = node.path or node.origin.name
        piece = node.piece
        if isinstance(piece, Linear) and any(isinstance(term, Identity) for term in piece.summands):
            return self._linear_residual_row(name, piece, start)
        if isinstance(piece, Linear):
            bound, kind = self.norm_of(piece.map), "linear"
        elif isinstance(piece, Elementwise):
            lower = 0.0 if piece.within or isinstance(piece.function, Written | PerCoordinate) else piece.constant
            bound, kind = Bound(lower, piece.constant, "largest slope"), "activation"
        else:
            assert isinstance(piece, Opaque)
            bound = piece.bound if self.norm == "l2" else Bound(0.0, piece.linf, piece.bound.method)
            kind = piece.kind
        return _row(name, kind, [bound], start, lower=bound.lower)

    def _linear_residual_row(self, name: str, piece: Linear, start: float) -> BlockRow:
        """x + W x, whose norm |I + W| needs no inequality (section 3.2 of the mathematics)."""
        whole = self.norm_of(piece.map)
        branches = [self.norm_of(term) for term in piece.summands]
        place = next(i for i, term in enumerate(piece.summands) if isinstance(term, Identity))
        shortcut = branches.pop(place).upper
        branch = sum_up(bound.upper for bound in branches)
        holds = all_hold(bound.guarantee for bound in branches)
        textbook = Bound(0.0, sum_up([shortcut, branch]), "textbook", holds)
        bounds = [textbook, replace(whole, method="linear")]
        return _row(name, "residual (identity)", bounds, start, whole.lower, shortcut=shortcut, branch=branch)

    def _operand(self, nodes: Sequence[Node]) -> Bound:
        """The product along one operand, or 1 if it is the entry itself."""
        rows = [self.row(node) for node in nodes]
        if not rows:
            return Bound(1.0, 1.0, "identity")
        return product([Bound(0.0, row.upper, row.method, row.guarantee) for row in rows])

    def _region_row(self, found: Region, start: float) -> BlockRow:
        branches = [self._operand(branch) for branch in found.branches]
        sides, guarantee = [bound.upper for bound in branches], all_hold(bound.guarantee for bound in branches)
        branch = sum_up(sides) if found.is_sum and branches else math.nan
        shortcut = math.nan
        if found.shortcut is not None:
            skip = self.norm_of(found.shortcut)
            shortcut, guarantee = skip.upper, guarantee & skip.guarantee
            sides.append(shortcut)
        if found.is_sum:
            textbook = sum_up(sides)
        else:
            textbook = rounded_up(math.hypot(*sides), 3) if self.norm == "l2" else max(sides)
        bounds, floor = [Bound(0.0, textbook, "textbook", guarantee)], math.nan
        turns = found.alternating() if self.joint and self.norm == "l2" and found.is_sum else None
        if turns is not None:
            map_, layers, slopes = turns
            joint = branch_bound(map_, layers, slopes=slopes, effort=self.effort, norm_of=self._certain_norm)
            bounds += [Bound(0.0, value, name, joint.guarantee) for name, value in joint.candidates.items()]
            floor = min(joint.lower, *(bound.upper for bound in bounds))
        return _row(found.path(), found.kind, bounds, start, shortcut=shortcut, branch=branch, floor=floor)


def _row(name: str, kind: str, bounds: Sequence[Bound], start: float, lower: float = 0.0, **fields: float) -> BlockRow:
    """The row with the smallest of the bounds, and with the smallest of each method. start: of its computation."""
    candidates: dict[str, float] = {}
    for bound in bounds:
        candidates[bound.method] = min(bound.upper, candidates.get(bound.method, math.inf))
    best = min(bounds, key=lambda bound: bound.upper)
    return BlockRow(
        name,
        kind,
        best.upper,
        min(lower, best.upper),
        best.method,
        best.guarantee,
        textbook=candidates.get("textbook", math.nan),
        joint=min((value for method, value in candidates.items() if method.startswith("joint")), default=math.nan),
        candidates=candidates,
        seconds=perf_counter() - start,
        **fields,
    )


def unique_names(pieces: list[tuple[Node, Node, BlockRow]]) -> list[str]:
    """A unique name for each row: that of its module, else of its final merge, else with a number."""
    count = Counter(row.name for _, _, row in pieces)
    names: list[str] = []
    for _, end, row in pieces:
        name = row.name if count[row.name] == 1 else end.path or end.origin.name
        used = sum(other.split("#")[0] == name for other in names)
        names.append(f"{name}#{used + 1}" if used else name)
    return names
