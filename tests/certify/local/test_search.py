"""The search for the largest radius: few attempts for any power of eps with which the loss grows."""

import math

import pytest

from robustres.certify.local.search import Outcome, largest_radius


def attempts(power: float, *, crossing: float = 0.07, linear: float = 1.0, start: float = 0.05) -> list[Outcome]:
    """Attempts with a loss that reaches the margin at `crossing`; up to `linear` times that no quadratic is tried."""

    def attempt(eps: float) -> Outcome:
        share = (eps / crossing) ** power
        only = eps < linear * crossing
        share = share * 3 if only else share
        return Outcome(eps, share, eps if share < 1 else 0.0, not only)

    return largest_radius(attempt, start=start)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("start", [0.01, 0.05, 0.1, 0.4])
def test_it_ends_close_below_the_crossing_after_few_attempts(power: float, start: float) -> None:
    tried = attempts(power, start=start, linear=0.0)
    best = max(one.radius for one in tried)
    assert 0.07 / 1.025 <= best <= 0.07
    assert len(tried) <= (9 if power < 2 else 6)


def test_attempts_by_a_weaker_method_do_not_mislead_it() -> None:
    tried = attempts(4.0, linear=0.6, start=0.01)
    assert max(one.radius for one in tried) >= 0.07 / 1.025
    assert len(tried) <= 7


def test_it_stops_at_a_known_example_and_at_the_deadline() -> None:
    assert max(one.eps for one in largest_radius(lambda eps: Outcome(eps, 0.1, eps), start=1.0, limit=0.5)) == 0.5
    assert len(largest_radius(lambda eps: Outcome(eps, 0.1, eps), start=1.0, deadline=-math.inf)) == 1
    assert len(largest_radius(lambda eps: Outcome(eps, 9.0, 0.0), start=1.0, deadline=-math.inf)) == 3


def test_strange_losses_end_the_search() -> None:
    for share in (math.nan, math.inf, 0.0):
        tried = largest_radius(lambda eps, share=share: Outcome(eps, share, 0.0), start=1.0)  # type: ignore[misc]
        assert 1 <= len(tried) <= 16
        assert all(0 < one.eps < math.inf for one in tried)
