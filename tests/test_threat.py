"""The threat model."""

import math

import pytest

from robustres.errors import InputError
from robustres.threat import ThreatModel, parse_number, parse_numbers


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, -math.inf])
def test_an_eps_that_is_not_positive_and_finite_is_refused_with_advice(eps: float) -> None:
    with pytest.raises(InputError, match="8/255"):
        ThreatModel("linf", eps)


def test_an_unknown_norm_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'l3'"):
        ThreatModel("l3", 0.1)  # type: ignore[arg-type]


def test_numbers_may_be_decimals_or_fractions() -> None:
    assert parse_number("36/255") == 36 / 255
    assert parse_numbers("1/255, 0.5") == (1 / 255, 0.5)


@pytest.mark.parametrize("text", ["", "1/0", "eight", "1/2/3"])
def test_text_that_is_not_a_number_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="8/255"):
        parse_number(text)
