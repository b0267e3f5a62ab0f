"""No method proves a false statement on small networks of every operation, and more effort never proves less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustres.certify.local import branch, parts
from robustres.certify.local.attempt import Attempt
from robustres.certify.local.backward import Rows
from robustres.certify.local.branch import branched
from robustres.certify.local.evidence import Branch, Evidence, Split
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question
from robustres.certify.local.sharpen import sharpened
from robustres.threat import Norm
from tests.certify.local.drawn import OPERATIONS, drawn, inside, questions

PARTS = 12


def evidences(made: Program, question: Question) -> dict[str, Evidence]:
    """The evidence of every method, regardless of whether its search considers it sufficient."""
    quick = made.to(torch.float32)
    search = Attempt(made, quick, question, lambda: 1.0)
    search.linear()
    search.least.fill_(-1.0)
    search.margins = search.margins.abs() + 1e-3  # so that no row is skipped, and the certificates are grouped
    search.quadratic()
    search.shares = dict.fromkeys(search.shares, 0.1)  # as if each of them proved its rows
    around = Attempt(made, quick, question, lambda: 1.0)
    around.margins = around.margins.abs() + 1e-3
    around.narrowed()
    region = question.region.to(torch.float32)
    bounds = bounded(quick, region)
    owner = torch.zeros(len(question.rows), dtype=torch.long)
    rows = Rows(len(made.steps) - 1, question.rows.float(), owner)
    tighter, helped = sharpened(quick, region, bounds, rows, chosen=6)
    trees = {}
    for row, limit in enumerate(question.limits.tolist()):
        one = question.rows[row : row + 1]
        trees[row] = branched(
            quick, region, tighter, one, limit, margin=0.0, stop=lambda: False, most=PARTS
        ).root  # fmt: skip
    return {
        "linear": Evidence(),
        "quadratic": search.evidence,
        "ellipsoids": around.evidence,
        "sharpened": Evidence(helped),
        "branching": Evidence(helped, (), trees),
    }


def refute(name: str, norm: Norm, seed: int) -> None:
    """Assert that no method proves either row on one network."""
    made, _ = drawn(name, seed)
    for question, _ in questions(made, norm, seed):
        for method, evidence in evidences(made, question).items():
            proof = Proof.of(made, question, evidence)
            assert not bool(proof.whole.any()), (name, norm, seed, method)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_method_proves_a_statement_refuted_by_a_point(name: str) -> None:
    place = list(OPERATIONS).index(name)
    refute(name, ("linf", "l2", "l1")[place % 3], place)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_method_proves_a_statement_refuted_by_a_point_on_many_networks(name: str) -> None:
    for seed in range(1000, 1042):
        refute(name, ("linf", "l2", "l1")[seed % 3], seed)


def smallest_by(made: Program, question: Question, evidence: Evidence) -> Tensor:
    """The bounds of the evidence: the largest limits on a grid that it proves."""
    region = question.region
    bounds = bounded(made, region, helped=evidence.helped)
    least = question.form(made, bounds).minimum(region) + question.limits
    for row, tree in evidence.trees.items():
        found = [
            parts.forms_of_leaves(made, bounds, question.rows[row : row + 1], [leaf], bounds.sizes()).minimum(region)
            for leaf in tree.leaves()
        ]
        least[row] = torch.cat(found).min()
    return least


@pytest.mark.parametrize("name", ["relu", "gelu", "clamp", "convolution", "max-pooling"])
def test_more_effort_proves_no_less_and_never_more_than_the_truth(name: str) -> None:
    seed, width = 4, 0.0
    while width < 0.1:  # some drawn networks are constant
        seed += 1
        made, _ = drawn(name, seed)
        ((question, width),) = questions(made, "linf", seed)
    found = {method: smallest_by(made, question, evidence) for method, evidence in evidences(made, question).items()}
    slack = 1e-5 * (1 + width)
    assert bool((found["linear"] <= found["sharpened"] + slack).all())
    assert bool((found["sharpened"] <= found["branching"] + slack).all())
    assert bool((found["branching"] <= question.limits).all())
    assert bool((found["branching"] > question.limits - 2 * width).all())


def test_branching_closes_the_gap_to_the_exact_minimum() -> None:
    made, _ = drawn("relu", 2)
    ((question, width),) = questions(made, "linf", 2)
    question = Question(question.region, question.rows, question.limits - 0.01 * width)  # true by a hundredth
    assert not bool(Proof.of(made, question, Evidence()).whole.all())
    search = Attempt(made, made.to(torch.float32), question, lambda: 5.0)
    search.linear()
    search.branch()
    assert bool(Proof.of(made, question, search.evidence).whole.all())
    assert sum(1 for tree in search.trees.values() for _ in tree.leaves()) > 2


def deep_tree(name: str, norm: Norm, seed: int) -> tuple[Program, Question, Evidence]:
    made, _ = drawn(name, seed)
    ((question, _),) = questions(made, norm, seed)
    return made, question, evidences(made, question)["branching"]


@pytest.mark.parametrize("name", ["relu", "tanh", "max-pooling"])
def test_every_point_lies_in_a_leaf_and_above_its_bound(name: str) -> None:
    made, question, evidence = deep_tree(name, "linf", 3)
    points = inside(question.region, 300, torch.Generator().manual_seed(0))
    values = made.values(points)
    bounds = bounded(made, question.region, helped=evidence.helped)
    for row, tree in evidence.trees.items():
        covered = torch.zeros(len(points), dtype=torch.bool)
        leaves = list(tree.leaves())
        assert len(leaves) > 3
        least = parts.forms_of_leaves(
            made, bounds, question.rows[row : row + 1], leaves, bounds.sizes()
        ).minimum(question.region)  # fmt: skip
        for bound, (_, way) in zip(least, leaves, strict=True):
            here = torch.ones(len(points), dtype=torch.bool)
            for split, above in way:
                step = made.steps[split.place]
                z = values[step.source].flatten(1)[:, split.coordinate]  # type: ignore[union-attr]
                here &= (z >= split.point) if above else (z <= split.point)
            covered |= here
            if bool(here.any()):
                assert float((values[-1][here] @ question.rows[row]).min()) >= float(bound)
        assert bool(covered.all())


def only_one_side(self: Branch) -> list[tuple[Branch, tuple[tuple[object, bool], ...]]]:
    """A tree whose splits drop one side."""
    found, way = self, []
    while found.parts is not None:
        best = max((0, 1), key=lambda side: found.parts[side].value)  # type: ignore[index]
        way.append((found.split, bool(best)))
        found = found.parts[best]
    return [(found, tuple(way))]


def one_sided(honest: Callable[..., Any]) -> Callable[..., Any]:
    """Both parts of every split use the lines of the upper one."""

    def wrong(program: Program, bounds: object, ways: list[tuple[tuple[Split, bool], ...]]) -> object:
        return honest(program, bounds, [tuple((split, True) for split, _ in way) for way in ways])

    return wrong


def moved(honest: Callable[..., Any]) -> Callable[..., Any]:
    """Constraints stronger than the split implies."""

    def wrong(*args: object) -> object:
        signs, points = honest(*args)
        return signs, {place: values - signs[place] for place, values in points.items()}

    return wrong


def test_wrong_trees_would_prove_false_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    def proves() -> bool:
        return any(bool(Proof.of(*deep_tree("relu", "linf", seed)).whole.any()) for seed in range(3))

    assert not proves()
    with monkeypatch.context() as patch:
        patch.setattr(Branch, "leaves", lambda self: iter(only_one_side(self)))
        assert proves()
    for name, wrong in (("lines_of_parts", one_sided), ("signs_of_parts", moved)):
        with monkeypatch.context() as patch:
            for module in (parts, branch):
                patch.setattr(module, name, wrong(getattr(parts, name)))
            assert proves(), name


def test_strange_evidence_proves_nothing_false() -> None:
    made, question, evidence = deep_tree("relu", "l2", 6)
    generator = torch.Generator().manual_seed(0)
    for tree in evidence.trees.values():
        for leaf, _ in tree.leaves():
            shapes = {place: values.shape for place, values in leaf.slopes.items()}
            leaf.slopes = {place: 5 * torch.randn(shape, generator=generator) for place, shape in shapes.items()}
            leaf.multipliers = {split: -7 * value - 1 for split, value in leaf.multipliers.items()}
    assert not bool(Proof.of(made, question, evidence).whole.any())
    bounds = bounded(made, question.region)
    points = inside(question.region, 500, generator)
    reached = (made.values(points)[-1] @ question.rows.T).amin(0)
    for row, tree in evidence.trees.items():
        form = parts.forms_of_leaves(made, bounds, question.rows[row : row + 1], list(tree.leaves()), bounds.sizes())
        assert float(form.minimum(question.region).min()) <= float(reached[row])


@pytest.mark.parametrize("seed", [1002, 1014])
def test_kinks_that_are_not_float32_numbers_are_kept_exactly(seed: int) -> None:
    refute("clamp", "linf", seed)
