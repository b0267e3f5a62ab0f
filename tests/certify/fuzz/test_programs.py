"""Laws that hold for any program over the operations that have a rule; see docs/fuzzing.md."""

import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings

from robustres.certify import lipschitz
from robustres.certify.graph.registry import RULES
from tests.certify.fuzz.exact import ExactProgram, exceeds_l2, exceeds_linf
from tests.certify.fuzz.fast_export import one_table
from tests.certify.fuzz.grammar import Drawn, Recorded, drawn, numbers_of, programs, shrunk
from tests.certify.fuzz.oracles import FoundError, Outcome, check, settings_of
from tests.certify.fuzz.productions import PRODUCTIONS

# Registered operations that no production draws, each with the reason.
NOT_DRAWN: dict[str, str] = {
    "cudnn_batch_norm": "runs on a GPU alone; its rule is that of batch_norm, which is drawn",
    "_safe_softmax": "is what torch makes of softmax within attention, which tests/certify/local draws",
    "scaled_dot_product_attention": "has bounds near an image only, for which tests/certify/local draws it",
}
# torch warns about even kernels, which does not concern robustres.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
PIECES = 20
PER_PIECE = 500


@pytest.fixture(scope="module", autouse=True)
def quick_captures() -> Iterator[None]:
    """One table for all captures of this file."""
    with one_table():
        yield


def test_every_registered_operation_is_drawn_by_a_production() -> None:
    named = {operation for production in PRODUCTIONS for operation in production.operations}
    assert set(RULES) - named == set(NOT_DRAWN)


def check_seed(seed: int) -> Outcome:
    """Check every law for the program of a seed; a failing program is shrunk first."""
    try:
        return check(*drawn(Recorded(numbers_of(seed))), seed)
    except FoundError as error:
        law = error.law
    found = {}

    def fails(other: Drawn) -> bool:
        try:
            check(*other, seed)
        except FoundError as error:
            if error.law == law:
                found["smallest"] = f"seed {seed}: {error}; input shape {other[1]}{other[0]!r}"
                return True
        return False

    shrunk(numbers_of(seed), fails)
    raise AssertionError(found.get("smallest", f"seed {seed}: {law}, which could not be shrunk"))


def check_exactly(seed: int) -> str:
    """Check in rational numbers that no Jacobian on the cells met by some lines exceeds the bounds."""
    exact = ExactProgram(Recorded(numbers_of(seed)))
    report = lipschitz(exact.program, exact.input_shape, **settings_of(seed), refuse="record")
    if report.refused:
        return "refused"
    if report.upper == float("inf"):
        return "vacuous"
    rng = random.Random(seed)
    for _ in range(1 if exact.inputs == 1 else 6):
        start = [rng.choice([-100, -40, 0, 31, 50]) + Fraction(rng.gauss(0, 1)) for _ in range(exact.inputs)]
        direction = [Fraction(rng.gauss(0, 1)) for _ in range(exact.inputs)]
        if exact.inputs == 1:  # the whole line: every pattern
            start, direction = [Fraction(-(10**39))], [Fraction(1)]
        for jacobian in exact.cells(start, direction):
            over = exceeds_l2(jacobian, report.l2_upper), exceeds_linf(jacobian, report.linf_upper)
            text = f"seed {seed}: l2 {report.l2_upper!r}, linf {report.linf_upper!r}, {over}{exact.program!r}"
            assert not any(over), text
    return "bounded"


@settings(deadline=None, max_examples=10, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_drawn_program_breaks_a_law(program: Drawn) -> None:
    check(*program)


@pytest.mark.parametrize("seed", [*range(14), 63086, 64033])  # the last: deviations that are rounding alone
def test_no_program_of_a_seed_breaks_a_law(seed: int) -> None:
    check_seed(seed)


def test_exact_jacobians_lie_below_the_bounds() -> None:
    outcomes = Counter(check_exactly(seed) for seed in range(10))
    assert outcomes["bounded"] >= 8, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_no_program_of_many_breaks_a_law(piece: int) -> None:
    outcomes = [check_seed(seed) for seed in range(1000 + PER_PIECE * piece, 1000 + PER_PIECE * (piece + 1))]
    met = {operation for outcome in outcomes for operation in outcome.operations}
    assert sum(outcome.kind == "bounded" for outcome in outcomes) > PER_PIECE / 2
    assert len(met & set(RULES)) > len(RULES) / 2


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_exact_jacobians_of_many_programs_lie_below_the_bounds(piece: int) -> None:
    for seed in range(1000 + 100 * piece, 1000 + 100 * (piece + 1)):
        check_exactly(seed)
