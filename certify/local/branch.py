"""Branch and bound: split the region at values of activations' arguments until every part is proved. A search.

The splits that lead to a part are constraints on it and enter its bound with multipliers (Wang et al. 2021,
beta-CROWN). Parts are processed in batches, the worst first, and start from the slopes and multipliers of their
parent. The intermediate bounds are those of the whole region, narrowed at the splits.
"""

import bisect
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.evidence import Branch, Split
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.optimise import Optimised, minimum, optimised
from robustres.certify.local.parts import Way, lines_of_parts, multipliers_of, signs_of_parts
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import PiecewiseLinear
from robustres.certify.maps.linear_map import as_rows

BATCH, CANDIDATES = 32, 3
ROOT_STEPS, STEPS, RATE = 20, 12, 0.1
MOST = 40_000  # parts; each stores its slopes


@dataclass(eq=False)
class Tree:
    """root: the whole region. worst: the smallest value of an open part; above 0 if all parts are proved."""

    root: Branch
    worst: float
    parts: int = 1

    @property
    def closed(self) -> bool:
        """Whether the search proved every part."""
        return self.worst > 0


@dataclass(eq=False)
class _Search:
    program: Program
    region: Region
    bounds: Bounds
    row: Tensor
    limit: float
    margin: float
    count: itertools.count = field(default_factory=itertools.count)  # type: ignore[type-arg]

    def optimise(self, ways: Sequence[Way], branches: Sequence[Branch], steps: int, rate: float) -> Optimised:
        signs, points = signs_of_parts(self.program, ways, self.program.dtype)
        rows = self.rows(ways, branches, signs)
        lines = lines_of_parts(self.program, self.bounds, ways)
        enough = torch.full((len(ways),), self.limit + self.margin, dtype=torch.float64)
        return optimised(
            self.program, rows, lines, self.region, signs=signs, points=points, steps=steps, rate=rate, enough=enough
        )

    def rows(self, ways: Sequence[Way], branches: Sequence[Branch], signs: dict[int, Tensor]) -> Rows:
        """Each part's row with the slopes and multipliers of its branch."""
        dtype = self.program.dtype
        multipliers = multipliers_of(self.program, branches, signs, dtype)
        slopes = {
            place: torch.stack([branch.slopes[place] for branch in branches]).to(dtype)
            for place in branches[0].slopes
            if all(place in branch.slopes for branch in branches)
        }
        owner = torch.arange(len(ways), device=self.program.device)
        weights = self.row.to(dtype).expand(len(ways), -1)
        return Rows(len(self.program.steps) - 1, weights, owner, slopes, multipliers)

    def store(self, found: Optimised, ways: Sequence[Way], branches: Sequence[Branch]) -> None:
        for at, (way, branch) in enumerate(zip(ways, branches, strict=True)):
            branch.value = float(found.value[at]) - self.limit
            branch.slopes = {place: values[at].to(torch.float16) for place, values in found.slopes.items()}
            latest = {(split.place, split.coordinate): split for split, _ in way}
            branch.multipliers = {
                split: float(found.multipliers[split.place][at].flatten()[split.coordinate])
                for split in latest.values()
            }


def branched(
    program: Program,
    region: Region,
    bounds: Bounds,
    row: Tensor,
    limit: float,
    *,
    margin: float,
    stop: Callable[[], bool],
    most: int = MOST,
) -> Tree:
    """Split the region (of one sample) until the row (1, outputs) exceeds its limit on every part.

    margin: by how much it must exceed the limit, so that the proof in float64 succeeds. stop: called before every
    batch.
    """
    search = _Search(program, region, bounds, row, limit, margin)
    root = Branch(0.0)
    search.store(search.optimise([()], [root], ROOT_STEPS, RATE), [()], [root])
    tree = Tree(root, root.value)
    waiting: list[tuple[float, int, Branch, Way]] = [(root.value, next(search.count), root, ())]
    while waiting and waiting[0][0] <= margin and tree.parts < most and not stop():
        taken: list[tuple[float, int, Branch, Way]] = []
        while waiting and len(taken) < BATCH and waiting[0][0] <= margin:
            taken.append(heapq.heappop(waiting))
        made = _cut(search, [one[2] for one in taken], [one[3] for one in taken])
        stuck = [(float("-inf"), *one[1:]) for one in taken if one[2].parts is None]
        tree.parts += len(made) // 2
        for branch, way in made:
            heapq.heappush(waiting, (branch.value, next(search.count), branch, way))
        if stuck:  # a part that cannot be split further stays open
            for one in stuck:
                heapq.heappush(waiting, one)
            break
    worst = waiting[0][0] if waiting else margin
    tree.worst = worst - margin if worst <= margin else worst
    return tree


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A split of branch number `at` and the resulting parts, with initial multipliers."""

    at: int
    split: Split
    parts: tuple[Branch, Branch]


def _cut(search: _Search, branches: Sequence[Branch], ways: Sequence[Way]) -> list[tuple[Branch, Way]]:
    """Split every branch in two at the best of a few candidates, and optimise the parts."""
    made: list[tuple[Branch, Way]] = []
    for chosen in _best(search, branches, ways, _candidates(search, branches, ways)):
        branch = branches[chosen.at]
        branch.split, branch.parts = chosen.split, chosen.parts
        made += [
            (part, (*ways[chosen.at], (chosen.split, bool(above)))) for above, part in enumerate(chosen.parts)
        ]  # fmt: skip
        branch.slopes, branch.multipliers = {}, {}
    if made:
        new, new_ways = [part for part, _ in made], [way for _, way in made]
        before = [part.value for part in new]
        search.store(search.optimise(new_ways, new, STEPS, RATE), new_ways, new)
        for part, value in zip(new, before, strict=True):
            part.value = max(part.value, value)
    return made


def _candidates(search: _Search, branches: Sequence[Branch], ways: Sequence[Way]) -> list[_Candidate]:
    """The cuts of every branch at which the gap between the lines costs its row most."""
    program = search.program
    lines = lines_of_parts(program, search.bounds, ways)
    rows = search.rows(ways, branches, signs_of_parts(program, ways, program.dtype)[0])
    passed: dict[int, Tensor] = {}
    with torch.no_grad():
        pulled_back(program, rows, lines, passed=passed)
    linear = {place: line for place, line in lines.items() if isinstance(line, Lines)}
    places = list(passed)
    if not places:
        return []
    scores, points = zip(
        *(_scores(program, search.bounds, linear[place], place, passed[place], ways) for place in places), strict=True
    )
    starts = list(itertools.accumulate((score.shape[1] for score in scores), initial=0))
    top = torch.cat(scores, dim=1).topk(min(CANDIDATES, starts[-1]), dim=1)
    found = []
    for at, (values, indices) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        for index in (index for value, index in zip(values, indices, strict=True) if value > 0):
            kind = bisect.bisect_right(starts, index) - 1
            place, coordinate = places[kind], index - starts[kind]
            split = Split(place, coordinate, float(points[kind][at, coordinate]))
            found.append(_Candidate(at, split, _parts(branches[at], split, linear[place], at, passed[place])))
    return found


def _parts(branch: Branch, split: Split, lines: Lines, at: int, row: Tensor) -> tuple[Branch, Branch]:
    """Both sides of a cut, with the multipliers that give each at least the value of the whole.

    A row that took the line of slope s below takes one of slope f now: the multiplier makes up for it.
    """
    one = at if len(lines.flattest) > 1 else 0
    flat, steep = (float(side[one].flatten()[split.coordinate]) for side in (lines.flattest, lines.steepest))
    weight, starts = float(row[at].flatten()[split.coordinate]), (0.0, 0.0)
    if flat < steep and weight > 0 and split.place in branch.slopes:
        slope = min(max(float(branch.slopes[split.place].flatten()[split.coordinate]), flat), steep)
        starts = weight * (slope - flat), weight * (slope - steep)
    below, above = (Branch(branch.value, branch.slopes, {**branch.multipliers, split: start}) for start in starts)
    return below, above


def _best(
    search: _Search, branches: Sequence[Branch], ways: Sequence[Way], tried: Sequence[_Candidate]
) -> list[_Candidate]:
    """For each branch that has candidates, the one whose worse part has the largest value."""
    if not tried:
        return []
    new_ways: list[Way] = [(*ways[one.at], (one.split, above)) for one in tried for above in (False, True)]
    signs, points = signs_of_parts(search.program, new_ways, search.program.dtype)
    rows = search.rows(new_ways, [part for one in tried for part in one.parts], signs)
    with torch.no_grad():
        form = pulled_back(search.program, rows, lines_of_parts(search.program, search.bounds, new_ways))
        values = minimum(form, search.region, rows.multipliers, points, close=False).reshape(-1, 2) - search.limit
    pairs = values.clamp_max(search.margin)
    merits = (pairs.amin(dim=1) + 0.1 * pairs.amax(dim=1)).tolist()
    best: dict[int, tuple[float, _Candidate]] = {}
    for one, merit in zip(tried, merits, strict=True):
        if one.at not in best or merit > best[one.at][0]:
            best[one.at] = merit, one
    return [one for _, one in best.values()]


def _scores(
    program: Program,
    bounds: Bounds,
    lines: Lines,
    place: int,
    row: Tensor,
    ways: Sequence[Way],
) -> tuple[Tensor, Tensor]:
    """(L, n) what the gap between the lines at each split point costs the row, 0 if none is possible; the points."""
    step = program.steps[place]
    assert isinstance(step, Activation)
    lower, upper = (side[step.source].expand(len(ways), *step.shape).clone() for side in (bounds.lower, bounds.upper))
    for at, way in enumerate(ways):
        for split, above in way:
            if split.place == place:
                side = lower if above else upper
                side[at].view(-1)[split.coordinate] = split.point
    point = cut(step.function, lower, upper)
    gap = (lines.upper_slope - lines.lower_slope) * point + lines.upper_offset - lines.lower_offset
    able = lines.loose & (point > lower) & (point < upper)
    cost = row.abs() * gap.clamp_min(0) * torch.where(row > 0, 0.5, 1.0)
    return as_rows(torch.where(able, cost, 0.0)), as_rows(point)


def cut(function: ScalarFunction, lower: Tensor, upper: Tensor) -> Tensor:
    """Where to split an interval: at the kink nearest to its middle, or in the middle."""
    middle = lower / 2 + upper / 2
    if not isinstance(function, PiecewiseLinear):
        return middle
    found, distance = middle, torch.full_like(middle, torch.inf)
    for kink in function.kinks:
        place = torch.as_tensor(kink, dtype=lower.dtype, device=lower.device).expand_as(lower)
        away = torch.where((place > lower) & (place < upper), (place - middle).abs(), torch.inf)
        found, distance = torch.where(away < distance, place, found), torch.minimum(away, distance)
    return found
