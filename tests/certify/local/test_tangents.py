"""Rows that give up what activations lie above their tangents: tangents, exact minima, sampled points, mutations."""

from dataclasses import replace

import pytest
import torch

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local import quadratic
from robustres.certify.local.certificate import Certificate, margins_question
from robustres.certify.local.evidence import Evidence, Quadratic
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Question
from robustres.certify.local.quadratic import added, proved_change, searched, sectors
from robustres.certify.local.steps import Activation
from robustres.certify.local.stored import certificate_bytes, read_certificate
from robustres.certify.local.tangents import Tangent, tangents
from robustres.threat import Norm
from tests.certify.local.drawn import drawn, inside, questions
from tests.certify.local.exact import SmallNet, smallest_margin

NAMES = ("relu", "falling leaky relu", "parametric relu", "absolute value", "maximum", "convolution", "max-pooling")


@pytest.mark.parametrize("name", [*NAMES, "clamp", "tanh"])
def test_activations_lie_on_one_side_of_their_tangents(name: str) -> None:
    made, _ = drawn(name, 0)
    ((question, _),) = questions(made, "l2", 0)
    with torch.no_grad():
        centre, region = bounded(made, question.region.with_eps(0.0)), question.region
        at, values = made.values(region.centre), made.values(inside(region, 500, torch.Generator().manual_seed(0)))
    for node, one in tangents(made, centre).items():
        place = made.scalar_nodes[node]
        step = made.steps[place]
        assert isinstance(step, Activation)
        moved = (values[step.source] - at[step.source]).flatten(1)
        above = (values[place] - at[place]).flatten(1) - one.slope * moved
        assert bool((one.sign * above >= -1e-12).all())
        assert name not in ("clamp", "tanh")


def test_no_side_is_known_where_the_image_may_lie_on_both_sides_of_the_kink() -> None:
    made, question, _ = exact(3)
    with torch.no_grad():
        wide = bounded(made, question.region)
    seen = 0
    for node, one in tangents(made, wide).items():
        step = made.steps[made.scalar_nodes[node]]
        assert isinstance(step, Activation)
        both = ((wide.lower[step.source] < 0) & (wide.upper[step.source] > 0)).flatten()
        assert torch.equal(one.sign == 0, both)
        seen += int(both.sum())
    assert seen


def too_high(made: Program, question: Question, seed: int, known: dict[object, Tangent] | None = None) -> bool:
    """Whether the proved decrease of a row is smaller than a sampled one, with its own multipliers or random ones."""
    generator = torch.Generator().manual_seed(seed)
    values = made.values(inside(question.region, 2000, generator))[-1]
    with torch.no_grad():
        bounds, centre = bounded(made, question.region), bounded(made, question.region.with_eps(0.0))
    slopes, proved = sectors(made, bounds, centre), known or tangents(made, centre)
    at = made.values(question.region.centre)[-1]
    for row in question.rows[:, None]:
        fall = float(((at - values) @ row[0]).max())
        found = searched(made, slopes, row, question.region, known=proved, steps=30)
        for point in (found, *spoilt(found, generator)):
            if proved_change(made, slopes, row, question.region, point, known=proved) < fall - 1e-9:
                return True
    return False


def spoilt(point: FixedPoint, generator: torch.Generator) -> list[FixedPoint]:
    """With random multipliers of any sign, small and larger than the row's own coefficients."""
    return [
        replace(
            point,
            tangents={
                node: size * torch.randn(given.shape, generator=generator) for node, given in point.tangents.items()
            },
        )
        for size in (0.3, 3.0)
    ]


@pytest.mark.parametrize(("name", "norm"), [("relu", "linf"), ("falling leaky relu", "l2"), ("absolute value", "linf")])
def test_no_sampled_decrease_is_larger_than_the_proved_one(name: str, norm: Norm) -> None:
    made, _ = drawn(name, 1)
    ((question, _),) = questions(made, norm, 1)
    assert not too_high(made, question, 1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_no_sampled_decrease_is_larger_on_many_networks(name: str, norm: Norm) -> None:
    for seed in range(2000, 2010):
        made, _ = drawn(name, seed)
        ((question, _),) = questions(made, norm, seed)
        assert not too_high(made, question, seed), seed


def exact(seed: int) -> tuple[Program, Question, float]:
    """A small network at an image, all margins of its answer, and the smallest one on a box."""
    net = SmallNet(seed, inputs=6, width=8)
    made, image = local_program(net, (1, 2, 3)), torch.full((1, 2, 3), 0.5, dtype=torch.float64)
    label = int(net(image[None])[0].argmax())
    question = margins_question(image, label, 3, "linf", 0.25)
    return made, question, smallest_margin(net, *question.region.bounds, label)


def least(made: Program, question: Question, *, known: bool, wrong: float = 1.0, trusted: bool = True) -> float:
    """What is proved of the smallest margin. wrong: factor of the signs of tangents; trusted: in the proof, too."""
    with torch.no_grad():
        bounds, centre = bounded(made, question.region), bounded(made, question.region.with_eps(0.0))
        slopes = sectors(made, bounds, centre)
        proved = tangents(made, centre) if known else {}
        sought = {node: replace(one, sign=wrong * one.sign) for node, one in proved.items()}
        proved = sought if trusted else proved
        margins = question.rows @ made.values(question.region.centre)[-1][0]
        lower = []
        for row, margin in zip(question.rows[:, None], margins.tolist(), strict=True):
            found = searched(made, slopes, row, question.region, known=sought)
            lower.append(margin - proved_change(made, slopes, row, question.region, found, known=proved))
    return min(lower)


@pytest.mark.parametrize("seed", [3, 4])
def test_they_close_the_gap_to_the_exact_minimum_and_never_pass_it(seed: int) -> None:
    made, question, smallest = exact(seed)
    plain, better = (least(made, question, known=known) for known in (False, True))
    assert better <= smallest + 1e-6
    assert smallest - better < 0.9 * (smallest - plain)


def test_the_wrong_side_would_prove_more_than_the_exact_minimum() -> None:
    assert any(
        least(made, question, known=True, wrong=-1.0) > smallest for made, question, smallest in map(exact, (3, 4))
    )


def test_what_a_search_gives_up_on_the_wrong_side_is_left_out() -> None:
    for made, question, smallest in map(exact, (3, 4)):
        assert least(made, question, known=True, wrong=-1.0, trusted=False) <= smallest + 1e-6


def test_rows_of_several_certificates_keep_their_own_multipliers() -> None:
    made, question, _ = exact(3)
    with torch.no_grad():
        bounds, centre = bounded(made, question.region), bounded(made, question.region.with_eps(0.0))
    slopes, known = sectors(made, bounds, centre), tangents(made, centre)
    region, rows = question.region, question.rows
    points = [searched(made, slopes, row, region, known=known) for row in rows[:, None]]
    alone = [
        proved_change(made, slopes, row, region, one, known=known)
        for row, one in zip(rows[:, None], points, strict=True)
    ]
    whole = added(points, [1, 1])
    together = proved_change(made, slopes, rows, region, whole, known=known)
    assert max(alone) <= together <= 1.05 * sum(one * one for one in alone) ** 0.5
    swapped = replace(whole, tangents={node: given.flip(0) for node, given in whole.tangents.items()})
    assert proved_change(made, slopes, rows, region, swapped, known=known) > together


def test_they_are_stored_and_read() -> None:
    made, question, _ = exact(3)
    with torch.no_grad():
        bounds, centre = bounded(made, question.region), bounded(made, question.region.with_eps(0.0))
    point = searched(made, sectors(made, bounds, centre), question.rows, question.region, known=tangents(made, centre))
    kept = Evidence(quadratics=(Quadratic((0, 1), (1.0, 1.0), point),))
    content = certificate_bytes(Certificate(question.region.centre[0], 0, "linf", 0.25, kept), made)
    (again,) = read_certificate(content, made).evidence.quadratics
    assert point.tangents
    assert all(torch.equal(again.point.tangents[node], given) for node, given in point.tangents.items())


def test_multipliers_of_another_shape_or_not_finite_are_left_out() -> None:
    made, question, _ = exact(3)
    with torch.no_grad():
        known = tangents(made, bounded(made, question.region.with_eps(0.0)))
    for values in (torch.full((1, 8), torch.nan), torch.full((1, 8), torch.inf), torch.ones(2, 8), torch.ones(8)):
        parts = quadratic.given_up(known, dict.fromkeys(known, values), 1)
        assert all(bool(torch.isfinite(part).all()) and not bool(part.any()) for _, part in parts)
