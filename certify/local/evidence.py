"""The results of a search that help the proof: slopes, multipliers, a tree of splits. None of it is trusted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local.changes import Multipliers
from robustres.certify.local.intermediate import Helped


@dataclass(frozen=True)
class Split:
    """A value at which the region is split in two: of a (flat) coordinate of the argument of the activation at
    `place`."""

    place: int
    coordinate: int
    point: float


@dataclass(eq=False)
class Branch:
    """A part of the region, proved by its own slopes and multipliers, or split in two parts that are.

    slopes: by activation (*shape), of the lines below. multipliers: of the splits on the way here, the latest of each
    coordinate. value: what the search found. parts: below and above the point of `split`. point: of a quadratic
    certificate of the part, None if it is to be proved by linear bounds.
    """

    value: float
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    multipliers: Mapping[Split, float] = field(default_factory=dict)
    split: Split | None = None
    parts: tuple["Branch", "Branch"] | None = None
    point: FixedPoint | None = None

    def leaves(self) -> Iterator[tuple["Branch", tuple[tuple[Split, bool], ...]]]:
        """Every part without a split, and the splits that lead to it, each with whether the part lies above the point.

        Together the leaves cover the whole region, since both sides of every split are kept.
        """
        waiting: list[tuple[Branch, tuple[tuple[Split, bool], ...]]] = [(self, ())]
        while waiting:
            branch, way = waiting.pop()
            if branch.split is None or branch.parts is None:
                yield branch, way
                continue
            for above, part in enumerate(branch.parts):
                waiting.append((part, (*way, (branch.split, bool(above)))))


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Multipliers for the sum of the squares of some rows, each times its scale.

    rows: indices of the rows of the question. scales: positive, one for each.
    """

    rows: tuple[int, ...]
    scales: tuple[float, ...]
    point: FixedPoint


@dataclass(frozen=True, eq=False)
class Evidence:
    """helped: slopes of intermediate bounds, by place. shared: multipliers of the ellipsoids that bound the steps, by
    place, the last of which is the output. trees: by row."""

    helped: Mapping[int, Helped] = field(default_factory=dict)
    quadratics: tuple[Quadratic, ...] = ()
    trees: Mapping[int, Branch] = field(default_factory=dict)
    shared: Mapping[int, Multipliers] = field(default_factory=dict)

    @property
    def methods(self) -> str:
        """The methods that prove it, in words."""
        certified = any(leaf.point is not None for tree in self.trees.values() for leaf, _ in tree.leaves())
        words = ["quadratic"] if self.quadratics or self.shared or certified else []
        if any(tree.split is not None for tree in self.trees.values()):
            words.append("branching")
        elif self.trees or self.helped:
            words.append("optimised slopes")
        return "local, " + " and ".join(words or ["linear"])
