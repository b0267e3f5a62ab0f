"""Losses against their formulas, computed by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustres.attacks.geometry import losses

ROW = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)


def test_the_margin_is_the_largest_other_logit_minus_the_labels() -> None:
    assert losses.margin(ROW.expand(3, -1), torch.tensor([0, 1, 4])).tolist() == [-1.0, 1.0, 4.0]


def test_the_ratio_divides_the_margin_by_the_largest_minus_the_third_largest() -> None:
    found = losses.dlr(ROW.expand(3, -1), torch.tensor([0, 1, 4]))
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.5, 2.0], dtype=torch.float64))
    two = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    assert losses.dlr(two, torch.tensor([0])).tolist() == [-2.0]  # there is no third class


@pytest.mark.parametrize(("classes", "expected"), [(5, -2 / 2.5), (4, -2 / 2.5), (3, -1.0), (2, -1.0)])
def test_the_targeted_ratio_divides_by_the_largest_minus_the_mean_of_the_third_and_fourth(
    classes: int, expected: float
) -> None:
    """Label 0; target 2 where there is one, else the last class: 4 - (2 + 1) / 2, then 4 - 2, then nothing at all."""
    target = torch.tensor([min(2, classes - 1)])
    found = losses.dlr_targeted(ROW[:, :classes], torch.tensor([0]), target)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


@given(
    logits=st.lists(st.floats(-30, 30), min_size=3, max_size=8),
    shift=st.floats(-100, 100),
    factor=st.floats(0.1, 10),
    label=st.integers(0, 2),
)
def test_cross_entropy_is_the_usual_one_and_ratios_are_invariant_to_shift_and_scale(
    logits: list[float], shift: float, factor: float, label: int
) -> None:
    row, labels = torch.tensor([logits], dtype=torch.float64), torch.tensor([label])
    usual = torch.nn.functional.cross_entropy(row, labels, reduction="none")
    torch.testing.assert_close(losses.cross_entropy(row, labels), usual, rtol=1e-9, atol=1e-9)
    distinct = torch.tensor([[value + 40.0 * place for place, value in enumerate(logits)]], dtype=torch.float64)
    moved = factor * distinct + shift
    torch.testing.assert_close(losses.dlr(moved, labels), losses.dlr(distinct, labels), rtol=1e-6, atol=1e-9)
    target = (labels + 1) % len(logits)
    torch.testing.assert_close(
        losses.dlr_targeted(moved, labels, target), losses.dlr_targeted(distinct, labels, target), rtol=1e-6, atol=1e-9
    )


def test_the_gradient_of_cross_entropy_keeps_its_direction_where_the_probability_rounds_to_one() -> None:
    logits = torch.tensor([[60.0, 0.0, -1.0]], requires_grad=True)
    (usual,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, torch.tensor([0])), logits)
    (ours,) = torch.autograd.grad(losses.cross_entropy(logits, torch.tensor([0])).sum(), logits)
    assert usual[0, 0] == 0
    assert ours[0, 0] < 0 < ours[0, 2] < ours[0, 1]


def test_a_targeted_loss_grows_towards_the_target() -> None:
    towards = losses.targeted(losses.margin)(ROW.expand(2, -1), torch.tensor([0, 3]))
    assert towards.tolist() == [1.0, -3.0]
