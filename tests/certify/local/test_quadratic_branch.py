"""Branch and bound with quadratic certificates: parts, exact minima, sampled points, mutations, storage."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from robustres.certify.local import proof, quadratic_branch
from robustres.certify.local.certificate import Certificate, margins_question
from robustres.certify.local.evidence import Branch, Evidence, Split
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.parts import Way
from robustres.certify.local.pinned import Pinned, narrowed, pinnable, pinned
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question, margin_and_change
from robustres.certify.local.quadratic import proved_change
from robustres.certify.local.quadratic_branch import branched_quadratically
from robustres.certify.local.steps import Activation
from robustres.certify.local.stored import certificate_bytes, read_certificate
from robustres.certify.maps.piecewise_linear import Abs, Clamp, LeakyRelu, Relu
from robustres.certify.maps.smooth import Sigmoid
from robustres.threat import Norm
from tests.certify.local.drawn import drawn, inside, questions
from tests.certify.local.exact import SmallNet, smallest_margin

PARTS = 4
NAMES = (
    "relu",
    "falling leaky relu",
    "parametric relu",
    "absolute value",
    "clamp",
    "tanh",
    "maximum",
    "convolution",
    "max-pooling",
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of a few steps: what they find need not be good."""
    for name, value in (("CANDIDATES", 2), ("ROOT_STEPS", 30), ("TRIAL_STEPS", 9), ("STEPS", 18)):
        monkeypatch.setattr(quadratic_branch, name, value)


def trees(made: Program, question: Question, most: int = PARTS) -> dict[int, Branch]:
    """A tree for every row, whatever it proves."""
    bounds = bounded(made.to(torch.float32), question.region.to(torch.float32))
    found = {}
    for row, limit in enumerate(question.limits.tolist()):
        one = question.rows[row : row + 1]
        found[row] = branched_quadratically(
            made, question.region, bounds, one, limit, left=lambda: 1e9, most=most
        ).root  # fmt: skip
    return found


def here(made: Program, values: list[Tensor], way: Way) -> Tensor:
    """Which samples lie in a part."""
    found = torch.ones(len(values[0]), dtype=torch.bool)
    for split, above in way:
        z = values[made.steps[split.place].source].flatten(1)[:, split.coordinate]  # type: ignore[union-attr]
        found &= (z >= split.point) if above else (z <= split.point)
    return found


def drawn_question(name: str, norm: Norm, seed: int) -> tuple[Program, Question, float]:
    made, _ = drawn(name, seed)
    ((question, width),) = questions(made, norm, seed)
    return made, question, width


@pytest.mark.parametrize(("name", "norm"), [("relu", "linf"), ("parametric relu", "l2")])
def test_every_leaf_lies_below_all_values_in_its_part(name: str, norm: Norm) -> None:
    check_leaves(name, norm, len(name))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_lies_below_all_values_in_its_part_on_many_networks(name: str, norm: Norm) -> None:
    for seed in range(1000, 1010):
        check_leaves(name, norm, seed)


def check_leaves(name: str, norm: Norm, seed: int) -> None:
    made, question, _ = drawn_question(name, norm, seed)
    assert not too_high(made, question, seed), seed
    values = made.values(inside(question.region, 500, torch.Generator().manual_seed(1)))
    for row, tree in trees(made, question).items():
        covered = torch.zeros(len(values[0]), dtype=torch.bool)
        for _, way in tree.leaves():
            part = here(made, values, way)
            covered |= part
            if bool(part.any()):
                there = pinned(made, way).values(values[0][part])[-1]
                assert torch.allclose(there, values[-1][part], rtol=0, atol=1e-12)
        assert bool(covered.all())
        assert not bool(Proof.of(made, question, Evidence(trees={row: tree})).whole.any())


def too_high(made: Program, question: Question, seed: int) -> bool:
    """Whether a leaf's bound lies above a value in its part, with its own multipliers or random ones of any sign."""
    generator = torch.Generator().manual_seed(seed)
    values = made.values(inside(question.region, 2000, generator))
    bounds = bounded(made, question.region)
    for row, tree in trees(made, question).items():
        for leaf, way in tree.leaves():
            part = here(made, values, way)
            if not bool(part.any()):
                continue
            least = float((values[-1][part] @ question.rows[row]).min() - question.limits[row])
            drawn_ones = {split: 3 * float(torch.randn((), generator=generator)) for split in leaf.multipliers}
            for multipliers in (leaf.multipliers, drawn_ones):
                one = replace_leaf(leaf, multipliers)
                margin, change = margin_and_change(made, question, bounds, row, one, way)
                if margin - change > least:
                    return True
    return False


def replace_leaf(leaf: Branch, multipliers: dict[object, float]) -> Branch:
    return Branch(leaf.value, {}, multipliers, point=leaf.point)  # type: ignore[arg-type]


def least_proved(made: Program, question: Question, row: int, tree: Branch) -> float:
    bounds = bounded(made, question.region)
    found = [margin_and_change(made, question, bounds, row, leaf, way) for leaf, way in tree.leaves()]
    return min(margin - change for margin, change in found)


def exact_question(seed: int) -> tuple[Program, Question, float]:
    """Of a small network, all margins of its answer at an image, and the smallest one on the box."""
    net = SmallNet(seed, inputs=6, width=8)
    made = local_program(net, (1, 2, 3))
    image = torch.full((1, 2, 3), 0.5, dtype=torch.float64)
    label = int(net(image[None])[0].argmax())
    question = margins_question(image, label, 3, "linf", 0.25)
    lower, upper = question.region.bounds
    return made, question, smallest_margin(net, lower, upper, label)


def split_question(seed: int, most: int = PARTS) -> tuple[Program, Question, float, dict[int, Branch]]:
    """With trees that were split although no part needed it."""
    made, question, exact = exact_question(seed)
    question = Question(question.region, question.rows, question.limits + 100)
    return made, question, exact, trees(made, question, most)


@cache
def bound_of_all_rows(seed: int, most: int = PARTS) -> tuple[float, float]:
    """What trees prove of the smallest margin of a small network on a box, and that margin."""
    made, question, exact, found = split_question(seed, most)
    return 100 + min(least_proved(made, question, row, tree) for row, tree in found.items()), exact


@pytest.mark.parametrize("seed", [3, 4])
def test_parts_close_the_gap_to_the_exact_minimum_and_never_pass_it(seed: int) -> None:
    (whole, exact), (split, _) = (bound_of_all_rows(seed, most) for most in (1, PARTS))
    assert split <= exact + 1e-6
    assert exact - split < 0.7 * (exact - whole)


def one_sided(made: Program, way: Way) -> Program:
    return pinned(made, [(split, True) for split, _ in way])


def row_alone(*given: object) -> float:
    return proved_change(*given[:5])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), [("pinned", one_sided), ("proved_change", row_alone)])
def test_wrong_parts_would_lie_above_values(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (proof, quadratic_branch):
        monkeypatch.setattr(module, name, wrong, raising=False)
    drawn_ones = (drawn_question("relu", "linf", seed) for seed in range(20))
    assert any(too_high(made, question, seed) for seed, (made, question, _) in enumerate(drawn_ones))


def test_a_tree_with_certificates_is_the_same_after_storing() -> None:
    made, question, _, found = split_question(3)
    image = question.region.centre[0]
    certificate = Certificate(image, 0, "linf", 0.25, Evidence(trees=found))
    again = read_certificate(certificate_bytes(certificate, made), made)
    for row, tree in found.items():
        assert tree.split is not None
        assert least_proved(made, question, row, tree) == least_proved(made, question, row, again.evidence.trees[row])
    assert again.methods == certificate.methods == "local, quadratic and branching"


@pytest.mark.parametrize(("runs", "proves"), [(None, True), (torch.float32, False)])
def test_certificates_of_parts_are_about_the_exact_network_only(
    runs: torch.dtype | None, proves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, question, _, found = split_question(3)
    monkeypatch.setattr(proof, "margin_and_change", lambda *_: (1.0, 0.5))
    program = local_program(SmallNet(3, inputs=6, width=8), (1, 2, 3), runs=runs)
    assert bool(Proof.of(program, question, Evidence(trees=found)).whole.all()) is proves


def strange() -> Iterator[object]:
    yield from (Relu(), Abs(), LeakyRelu(0.3), LeakyRelu(torch.tensor([0.1, 2.0, -1.0, 0.0])))


@pytest.mark.parametrize("function", list(strange()))
def test_a_pinned_function_agrees_on_its_side_and_is_linear(function: Relu | LeakyRelu) -> None:
    assert pinnable(function)
    above = torch.tensor([True, False, False, True])
    below = torch.tensor([False, True, False, False])
    twin = Pinned(function, above, below)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].expand(-1, 4)
    agrees = torch.where(above, z >= 0, torch.where(below, z <= 0, True))
    assert torch.allclose(twin(z)[agrees], function(z)[agrees], rtol=1e-15, atol=0)
    held = above | below
    assert torch.allclose((twin(z) + twin(-z))[:, held], torch.zeros(9, 3, dtype=torch.float64), atol=1e-15)
    flat, steep = twin.slopes_on(-torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert torch.equal(flat[held], steep[held])


def test_only_splits_at_the_kink_are_pinned_and_intervals_end_at_the_split() -> None:
    made, question, _ = drawn_question("relu", "linf", 0)
    (place, *_), bounds = made.activations, bounded(made, question.region)
    step = made.steps[place]
    assert isinstance(step, Activation)
    low, high = (float(side[step.source].flatten()[0]) for side in (bounds.lower, bounds.upper))
    split = Split(place, 0, low / 2 + high / 2)
    for above, ends in ((False, (low, split.point)), (True, (split.point, high))):
        part = narrowed(made, bounds, [(split, above)])
        assert tuple(float(side[step.source].flatten()[0]) for side in (part.lower, part.upper)) == ends
        assert pinned(made, [(split, above)]).steps[place] is step


def test_only_two_lines_through_the_origin_are_pinned() -> None:
    assert not pinnable(Clamp(0.0, 1.0))
    assert not pinnable(Sigmoid())
