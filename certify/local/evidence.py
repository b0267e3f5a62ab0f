"""What a search hands to the proof: slopes, multipliers, a tree of splits. None of it is trusted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local.changes import Multipliers
from robustres.certify.local.intermediate import Helped


@dataclass(frozen=True)
class Split:
    """A value of an activation's argument at which the region is cut in two: coordinate (flat) of the step that the
    activation at `place` reads."""

    place: int
    coordinate: int
    point: float


@dataclass(eq=False)
class Branch:
    """A part of the region, proved by its own slopes and multipliers, or cut in two parts that are.

    slopes: by activation (*shape), of the lines below. multipliers: of the splits on the way here, the latest of each
    coordinate. value: what the search found. parts: below and above the point of `split`.
    """

    value: float
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    multipliers: Mapping[Split, float] = field(default_factory=dict)
    split: Split | None = None
    parts: tuple["Branch", "Branch"] | None = None

    def leaves(self) -> Iterator[tuple["Branch", tuple[tuple[Split, bool], ...]]]:
        """Every uncut part, and the splits that lead to it, each with whether the part lies above the point.

        Together they are the whole: each cut hands on both of its sides.
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
    """Multipliers for some rows together: of the sum of their squares, each times its scale.

    rows: places among the rows in question. scales: of each, positive.
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
        """What proves it, in words."""
        words = ["quadratic"] if self.quadratics or self.shared else []
        if any(tree.split is not None for tree in self.trees.values()):
            words.append("branching")
        elif self.trees or self.helped:
            words.append("optimised slopes")
        return "local, " + " and ".join(words or ["linear"])
