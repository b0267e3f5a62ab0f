"""Every claim of the laboratory, on small built-in networks and the real digits, with its tolerances."""

from collections.abc import Callable

import pytest

from robustres.dynamics import NAMES, Claim, Parts, demonstrate, digits_parts
from robustres.dynamics.demonstrations.continuous import continuous
from robustres.dynamics.demonstrations.correction import correction
from robustres.dynamics.demonstrations.expansion import expansion
from robustres.dynamics.demonstrations.gradient_flow import gradient_flow
from robustres.dynamics.demonstrations.information import information
from robustres.dynamics.demonstrations.second_task import second_task
from robustres.dynamics.demonstrations.smoothness import smoothness
from robustres.errors import InputError

SCALES = ((1.0, 1.0), (1.0, 0.1), (0.5, 0.1))
# Smaller than in the documentation, so that all of them together take less than a minute on one core.
QUICK: dict[str, Callable[[Parts], Claim]] = {
    "gradient-flow": lambda parts: gradient_flow(parts, depths=(10, 20, 60), samples=16),
    "information": lambda parts: information(parts, epochs=3, samples=4),
    "correction": lambda parts: correction(parts, epochs=6, samples=360),
    "smoothness": lambda parts: smoothness(parts, samples=30, pairs=8, steps=5),
    "jacobians": lambda parts: expansion(parts, depth=2, epochs=8, samples=6, scales=SCALES, deep=40, deep_epochs=5),
    "continuous": lambda parts: continuous(parts, epochs=4, samples=60),
    "second-task": lambda parts: second_task(parts, epochs=8, budgets=(0.0, 0.1, 0.8), seeds=(0,)),
}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return digits_parts()


@pytest.fixture(scope="module")
def claims(parts: Parts) -> dict[str, Claim]:
    return {}


def made(name: str, parts: Parts, claims: dict[str, Claim]) -> Claim:
    """The claim, computed once for all tests of this file."""
    if name not in claims:
        claims[name] = QUICK[name](parts)
    return claims[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_claim_holds_on_real_digits(name: str, parts: Parts, claims: dict[str, Claim]) -> None:
    claim = made(name, parts, claims)
    broken = [
        f"{f.what}: {f.value:.4g} is not {f.relation} {f.limit:.4g} ({f.against})"
        for f in claim.findings
        if not f.holds
    ]
    assert claim.holds, "; ".join(broken)
    assert claim.name == name
    assert len(claim.frame) > 3
    assert claim.source
    assert any(finding.relation for finding in claim.findings)


@pytest.mark.parametrize("name", NAMES)
def test_the_chart_is_rendered(name: str, parts: Parts, claims: dict[str, Claim]) -> None:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(made(name, parts, claims).chart)
    assert svg.count("<path") > 10
    assert "NaN" not in svg


def test_proven_samples_keep_their_prediction_and_their_number_depends_on_the_budget(
    parts: Parts, claims: dict[str, Claim]
) -> None:
    frame = made("second-task", parts, claims).frame
    adapters = frame[frame["method"] == "adapters"]
    assert (adapters["kept"] >= adapters["kept_proven"]).all()
    assert (adapters["kept_proven"] >= adapters["kept_by_margin"]).all()
    assert adapters["kept_proven"].is_monotonic_decreasing


def test_an_unknown_demonstration_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="second-task"):
        demonstrate(["third-task"])


@pytest.mark.slow
def test_every_claim_holds_at_the_size_used_in_the_documentation() -> None:
    assert [claim.name for claim in demonstrate() if not claim.holds] == []
