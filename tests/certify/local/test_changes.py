"""Ellipsoids around the changes of all steps: sampled changes, wrong slopes, strange multipliers, roundings."""

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustres.certify.local import changes as changes_module
from robustres.certify.local.attempt import Attempt
from robustres.certify.local.changes import SPARE, Changes, Multipliers, Targets
from robustres.certify.local.evidence import Evidence
from robustres.certify.local.intermediate import Bounds, bounded, followed
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question
from robustres.certify.local.secants import slopes_from, tangent_at
from robustres.certify.local.sets import Region
from robustres.certify.local.shared import SharedSearch
from robustres.certify.local.steps import Affine
from robustres.threat import Norm
from tests.certify.local.drawn import OPERATIONS, SHAPE, drawn, inside, questions
from tests.certify.local.exact import SmallNet

ROWS = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)


def centre_of(made: Program, region: Region) -> Bounds:
    return bounded(made, region.with_eps(0.0), rows=False)


def followed_to_the_end(made: Program, region: Region, choice: Callable[..., Multipliers | None]) -> Changes:
    """On intervals alone, so that the ellipsoids have something to do."""
    changes = followed(made, region, centre_of(made, region), choice)
    bounds = bounded(made, region, rows=False)
    for place in range(len(made.steps)):
        changes.follow(place, (bounds.lower, bounds.upper))
    return changes


def reached(made: Program, region: Region, seed: int) -> Tensor:
    """(R,) the largest decreases of the rows that random points see."""
    points = inside(region, 500, torch.Generator().manual_seed(seed))
    values = made.values(torch.cat([region.centre, points]))[-1]
    return ((values[:1] - values[1:]) @ ROWS.T).amax(0)


@pytest.mark.parametrize(
    "name",
    [
        *("relu", "gelu", "convolution", "sort", "concatenation", "max-pooling", "clamp", "product", "softmax"),
        *("gated linear unit", "layer normalisation", "squeeze and excitation", "attention", "quotient"),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_ellipsoid_holds_every_sampled_change_for_any_multipliers(name: str, norm: Norm) -> None:
    made, _ = drawn(name, 7)
    ((question, _),) = questions(made, norm, 7)
    most, last = reached(made, question.region, 7), len(made.steps) - 1
    changes = followed_to_the_end(made, question.region, SharedSearch())
    best = changes.decrease(last, ROWS)
    assert best is not None
    assert bool((most <= best).all())
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0):
        drawn_ones = {
            place: scale * torch.rand(math.prod(made.steps[place].shape), generator=generator, dtype=torch.float64)
            for place in changes.free
        }
        assert bool((most <= changes.bound(changes.targets(last, rows=ROWS), drawn_ones)).all())


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_the_search_is_not_far_above_what_points_reach(name: str) -> None:
    for seed in (3, 8):
        made, _ = drawn(name, seed)
        ((question, _),) = questions(made, "l2", seed)
        region = question.region.with_eps(0.05)
        changes = followed_to_the_end(made, region, SharedSearch())
        bound = changes.decrease(len(made.steps) - 1, ROWS)
        assert bound is not None
        assert bool((bound <= 4 * reached(made, region, seed) + 1e-9).all())


def test_one_neuron_at_its_kink_changes_by_exactly_what_the_ellipsoid_allows() -> None:
    """relu(w x) with w x = 0 at the image: along w it changes by |w| eps, and t = 2 / |w eps|^2 proves just that."""
    weight, eps = torch.tensor([[3.0, -1.0, -1.0, -1.0]], dtype=torch.float64), 0.1
    net = nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double()
    net[0].weight.data, net[2].weight.data = weight, torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    made = local_program(net, (4,))
    region = Region.ball(torch.full((1, 4), 0.5, dtype=torch.float64), eps, "l2")
    best = torch.tensor([2 / float(weight.square().sum())], dtype=torch.float64)
    changes = followed_to_the_end(made, region, lambda now, *_: dict.fromkeys(now.free, best))
    bound = changes.decrease(len(made.steps) - 1, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    exact = eps * float(weight.norm())
    assert bound is not None
    assert exact <= float(bound) <= exact * (1 + 1e-4)


class Times(nn.Module):
    """Logits (x y, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        product = x[:, :1] * x[:, 1:]
        return torch.cat([product, 0 * product], dim=1)


def test_the_change_of_a_product_is_bounded_closely() -> None:
    made, eps = local_program(Times(), (2,)), 0.2
    region = Region.ball(torch.tensor([[0.5, 0.4]], dtype=torch.float64), eps, "l2")
    changes = followed_to_the_end(made, region, SharedSearch())
    bound = changes.decrease(len(made.steps) - 1, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    angle = torch.linspace(0, 2 * math.pi, 10_001, dtype=torch.float64)
    points = region.centre + eps * torch.stack([angle.cos(), angle.sin()], dim=1)
    most = float((points.prod(dim=1) - region.centre.prod()).abs().max())
    assert bound is not None
    assert most <= float(bound) <= 1.3 * most


def test_wrong_slopes_would_prove_what_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = slopes_from

    def narrow(*args: object) -> tuple[Tensor, Tensor]:
        flat, steep = honest(*args)  # type: ignore[arg-type]
        return flat, flat + (steep - flat) / 8

    def excess() -> float:
        worst = 0.0
        for seed in range(6):
            made, _ = drawn("absolute value", seed)
            ((question, _),) = questions(made, "l2", seed)
            bound = followed_to_the_end(made, question.region, SharedSearch()).decrease(len(made.steps) - 1, ROWS)
            assert bound is not None
            worst = max(worst, float((reached(made, question.region, seed) / bound).max()))
        return worst

    assert excess() <= 1
    monkeypatch.setattr(changes_module, "slopes_from", narrow)
    assert excess() > 1


@pytest.mark.parametrize(("bias", "last"), [(-0.01, -1.0), (-0.01, 1.0), (0.01, -1.0), (0.01, 1.0)])
def test_one_neuron_near_its_kink_and_the_sides_of_its_tangent(
    bias: float, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decrease of relu(w x) and of -relu(w x), where convexity rules one of the slopes out or not."""
    weight, eps = torch.tensor([[3.0, -1.0, -1.0, -1.0]], dtype=torch.float64), 0.1
    net = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2, bias=False)).double()
    net[0].weight.data, net[0].bias.data = weight, torch.tensor([bias], dtype=torch.float64)
    net[2].weight.data = torch.tensor([[last], [0.0]], dtype=torch.float64)
    made, far = local_program(net, (4,)), eps * float(weight.norm())
    region = Region.ball(torch.full((1, 4), 0.5, dtype=torch.float64), eps, "l2")
    exact = max(bias, 0.0) if last > 0 else far + min(bias, 0.0)

    def proved() -> float:
        bound = followed_to_the_end(made, region, SharedSearch()).decrease(3, ROWS[:1, :2])
        assert bound is not None
        return float(bound)

    linear = 0.0 if bias < 0 else far  # of the tangent; the rest is what the activation adds
    assert exact <= proved()
    if last > 0:
        assert proved() <= 1.2 * linear + 1e-9
    honest = tangent_at
    monkeypatch.setattr(changes_module, "tangent_at", lambda *given: (lambda one: (one[0], -one[1]))(honest(*given)))
    if last < 0 and bias < 0:
        assert proved() < exact


@pytest.mark.parametrize("name", sorted(OPERATIONS)[::4])
def test_intervals_that_ellipsoids_narrow_hold_every_sampled_value(name: str) -> None:
    made, _ = drawn(name, 11)
    ((question, _),) = questions(made, "l2", 11)
    region = question.region
    bounds = bounded(made, region, changes=followed(made, region, centre_of(made, region), SharedSearch()))
    values = made.values(inside(region, 500, torch.Generator().manual_seed(1)))
    for place, value in enumerate(values):
        assert bool(((bounds.lower[place] <= value) & (value <= bounds.upper[place])).all()), place


def test_strange_multipliers_prove_nothing_false() -> None:
    made, _ = drawn("relu", 5)
    ((question, _),) = questions(made, "l2", 5)
    for value in (math.nan, -1.0, 1e300):
        given = {at: torch.full((8,), value, dtype=torch.float64) for at in made.activations}
        wrong = dict.fromkeys(range(len(made.steps)), given)
        assert not bool(Proof.of(made, question, Evidence(shared=wrong)).whole.any())


def test_they_prove_larger_balls_than_lines_do() -> None:
    made = local_program(SmallNet(4, inputs=8, width=16), (1, 2, 4))
    centre = torch.rand(1, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    values = made.values(centre)[-1][0]
    question = Question(Region.ball(centre, 0.5, "l2"), ROWS, ROWS @ values - 0.3)
    attempt = Attempt(made, made.to(torch.float32), question, lambda: 5.0)
    attempt.narrowed()
    found, plain = (Proof.of(made, question, one).radii for one in (attempt.evidence, Evidence()))
    assert bool((found >= plain).all())
    assert float(found.min()) > 1.1 * float(plain.min())


def test_the_factor_keeps_what_it_promises() -> None:
    made, _ = drawn("relu", 2)
    ((question, _),) = questions(made, "l2", 2)
    changes = followed_to_the_end(made, question.region, SharedSearch())
    t = changes.stacked({}) / 30
    found = changes.factor(t)
    assert found is not None
    root = t.sqrt()
    across = root[:, None] * changes.hidden / root
    whole = torch.eye(len(t), dtype=torch.float64) - (across + across.T) / 2
    whole = whole - root[:, None] * (changes.image @ changes.image.T) * root / 4
    least = float(torch.linalg.eigvalsh(whole - found.lower @ found.lower.T)[0])
    assert least >= SPARE
    assert found.length >= float(found.lower.norm())
    assert found.size >= float((root[:, None] * changes.image).norm())
    targets = changes.targets(len(made.steps) - 1, rows=ROWS)
    exact = torch.linalg.solve(whole, rhs(changes, targets, root))
    wanted = (targets.image.square().sum(0) + (rhs(changes, targets, root) * exact).sum(0)).sqrt() * changes.radius
    split = torch.split(t, [len(free) for free in changes.free.values()])
    given = {place: torch.ones(math.prod(made.steps[place].shape), dtype=torch.float64) for place in changes.free}
    for (place, free), part in zip(changes.free.items(), split, strict=True):
        given[place][free] = part
    bound = changes.bound(targets, given)
    assert bool((bound >= wanted).all())
    assert bool((bound <= wanted * (1 + 1e-3)).all())


def rhs(changes: Changes, targets: Targets, root: Tensor) -> Tensor:
    return targets.hidden / root[:, None] + root[:, None] * (changes.image @ targets.image) / 2


def test_roundings_of_the_changes_are_charged() -> None:
    made, _ = drawn("relu", 2)
    ((question, _),) = questions(made, "linf", 2)
    changes = followed(made, question.region, centre_of(made, question.region), lambda *_: None)
    bounds = bounded(made, question.region, rows=False)
    checked = 0
    for place, step in enumerate(made.steps):
        before = {at: values.clone() for at, values in changes.values.items()}
        errors = dict(changes.errors)
        changes.follow(place, (bounds.lower, bounds.upper))
        if isinstance(step, Affine) and place in changes.values:
            matrix = step.map(
                torch.eye(math.prod(step.map.in_shape), dtype=torch.float64).reshape(-1, *step.map.in_shape)
            )
            flat = before[step.source].flatten(1)
            exact = [
                [
                    sum(Fraction(a) * Fraction(w) for a, w in zip(row, column, strict=True))
                    for column in matrix.T.tolist()
                ]
                for row in flat.tolist()
            ]
            for at, (mine, limit) in enumerate(
                zip(changes.values[place].flatten(1).T.tolist(), changes.errors[place].flatten().tolist(), strict=True)
            ):
                off = [float(Fraction(value) - exact[row][at]) for row, value in enumerate(mine)]
                inherited = float(errors[step.source].flatten() @ matrix[:, at].abs())
                assert math.hypot(*off) + 0.999 * inherited <= limit
                checked += any(off)
    assert checked > 1
    assert changes.row_error > 0


class Side(nn.Module):
    """Two layers, and the input or the first layer's argument again at the end."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.side = (
            nn.Linear(math.prod(SHAPE), 4),
            nn.Linear(4, 3),
            nn.Linear(math.prod(SHAPE) if whole else 4, 3),
        )
        self.whole = whole
        with torch.no_grad():  # a neuron that is never active, and counts
            self.first.bias[0] = -10.0
            if not whole:
                self.side.weight[:, 0] = torch.tensor([9.0, -9.0, 9.0])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        z = self.first(x)
        answer: Tensor = self.last(torch.relu(z)) + self.side(x if self.whole else z)
        return answer


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_read_beside_the_first_activation_still_changes(whole: bool) -> None:
    made = local_program(Side(whole), SHAPE)
    region = Region.ball(torch.full((1, *SHAPE), 0.5, dtype=torch.float64), 0.4, "l2")
    bound = followed_to_the_end(made, region, SharedSearch()).decrease(len(made.steps) - 1, ROWS)
    assert bound is not None
    assert bool((reached(made, region, 3) <= bound).all())


@pytest.mark.parametrize("off", [0.0, 1e-4])
def test_fewer_coordinates_of_the_input_reach_all_that_it_reaches(off: float) -> None:
    """The arguments of the first activation, two of which are the same, are L y with |y| <= |x|: L L^T >= V^T V."""
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    net[0].weight.data[1] = net[0].weight.data[0]
    made = local_program(net, (12,))
    region = Region.ball(torch.full((1, 12), 0.5, dtype=torch.float64), 0.4, "l2")
    bounds = bounded(made, region, rows=False)
    changes = followed(made, region, centre_of(made, region), lambda *_: None)
    changes.follow(0, (bounds.lower, bounds.upper))
    changes.follow(1, (bounds.lower, bounds.upper))
    columns = changes.values[1].clone()
    changes.errors[1] = torch.full_like(changes.errors[1], off)
    columns += off * columns / columns.norm(dim=0)
    changes._compress(2, 1, torch.arange(6))
    assert changes.inputs == 6

    def gram(values: Tensor) -> list[list[Fraction]]:
        rows = [[Fraction(number) for number in row] for row in values.T.tolist()]
        return [[sum(map(operator.mul, one, other), Fraction(0)) for other in rows] for one in rows]

    room = [
        [float(a - b) for a, b in zip(*pair, strict=True)]
        for pair in zip(gram(changes.values[1]), gram(columns), strict=True)
    ]
    assert float(torch.linalg.eigvalsh(torch.tensor(room, dtype=torch.float64))[0]) > 0


def test_what_rows_and_targets_are_off_by_is_charged() -> None:
    made, _ = drawn("relu", 2)
    ((question, _),) = questions(made, "l2", 2)
    changes = followed_to_the_end(made, question.region, SharedSearch())
    t = changes.stacked({}) / 30
    root, count = t.sqrt(), len(t)

    def whole(hidden: Tensor) -> Tensor:
        across = root[:, None] * hidden / root
        gram = root[:, None] * (changes.image @ changes.image.T) * root / 4
        return torch.eye(count, dtype=torch.float64) - (across + across.T) / 2 - gram

    changes.row_error = 1e-4
    found = changes.factor(t)
    assert found is not None
    for at in range(count):
        off = torch.zeros(count, count, dtype=torch.float64)
        off[at, at] = changes.row_error
        left = whole(changes.hidden + off) - found.lower @ found.lower.T
        assert float(torch.linalg.eigvalsh(left)[0]) >= SPARE
    changes.row_error = 0.0
    honest = changes.targets(len(made.steps) - 1, rows=ROWS)
    given = {
        place: torch.zeros(math.prod(made.steps[place].shape), dtype=torch.float64).index_put((free,), part)
        for (place, free), part in zip(
            changes.free.items(), torch.split(t, [len(free) for free in changes.free.values()]), strict=True
        )
    }
    bound = changes.bound(replace(honest, error=torch.full_like(honest.error, 0.1)), given)
    inverse = torch.linalg.inv(whole(changes.hidden))
    for at in range(count):
        for sign in (0.1, -0.1):
            hidden = honest.hidden.clone()
            hidden[at] += sign
            right = rhs(changes, replace(honest, hidden=hidden), root)
            square = honest.image.square().sum(0) + (right * (inverse @ right)).sum(0)
            assert bool((bound >= square.sqrt() * changes.radius).all())
