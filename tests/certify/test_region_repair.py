"""Repairs chosen for each region of a torus: valid, never evaluated at some frequencies only, and smaller."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustres.certify.blocks import network_forms, region_repair, torus_bound
from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.network_forms import SURE, proof_within, torus_form
from robustres.certify.blocks.torus_network import on_tori
from tests.certify.test_torus_network import Stages, attained, simplified


@pytest.mark.parametrize("least", [(1e-3, 2e-2), (1e-5, 3e-4), (1e-1, 8e-2)])
def test_the_line_searches_come_near_the_smallest_value(least: tuple[float, float]) -> None:
    tried: list[Repair] = []

    def square(repair: Repair) -> float:
        tried.append(repair)
        return 1 + math.log(repair.lift / least[0]) ** 2 + math.log(repair.share / least[1]) ** 2

    best = region_repair.best_repair(square, 30)
    assert square(best) == min(map(square, list(tried))) <= 3
    tried.clear()
    region_repair.best_repair(square, 5)
    assert len(tried) <= 5


def test_nothing_is_finite_and_the_start_is_returned() -> None:
    assert region_repair.best_repair(lambda _: math.inf, 10) == region_repair.START


@pytest.mark.parametrize("frequency", [(0, 0), (1, 2), (3, 1)])
def test_the_critical_frequency_is_that_of_the_change(frequency: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = on_tori(simplified(Stages(nn.ReLU(), False).double().eval(), 2, 8, 8), widest=1000)
    (region,) = network.regions
    point = search(network.order, network.layers, copies=4, steps=3)
    (rows, columns), (first, second) = region.torus.points, region.multiplicity[region.order[0]]
    down = 2 * math.pi * frequency[0] / rows * (torch.arange(rows * first) // first)
    across = 2 * math.pi * frequency[1] / columns * (torch.arange(columns * second) // second)
    wave = (down[:, None] + across).cos().expand(1, 2, -1, -1)
    found = region_repair.critical_frequencies(region, replace(point, change=wave), 1)
    assert found.tolist() == [list(frequency)]


@pytest.mark.parametrize("widest", [4, 1000])
def test_the_chosen_repairs_prove_a_smaller_bound_than_a_fixed_one(widest: int) -> None:
    torch.manual_seed(2)
    model = Stages(nn.ReLU(), False).double().eval()
    network = on_tori(simplified(model, 2, 8, 8), widest=widest)
    point = search(network.order, network.layers, copies=4, steps=60)
    fixed = torus_bound.torus_bound(network, point, repair=SURE)
    chosen = torus_bound.torus_bound(network, point, trials=16)
    assert attained(model, 2, 8, 8) <= chosen < fixed
    assert point.value * (1 - 1e-6) <= chosen <= point.value * (1 + 0.8 * (fixed / point.value - 1))


def test_the_chosen_repair_is_proved_at_all_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    network = on_tori(simplified(Stages(nn.ReLU(), False).double().eval(), 2, 8, 8), widest=1000)
    point = search(network.order, network.layers, copies=4, steps=60)
    every = torus_bound.coarse_frequencies(network.regions[0].torus)
    repair = Repair(3e-2, 1e-2)

    def last(*_: object) -> Tensor:
        return every[-1:]

    def fixed(square: object, trials: int) -> Repair:
        assert callable(square)
        assert trials == 5
        assert 0 < square(repair) < math.inf
        return repair

    monkeypatch.setattr(torus_bound, "critical_frequencies", last)
    monkeypatch.setattr(torus_bound, "best_repair", fixed)
    found = torus_bound.torus_bound(network, point, trials=5)
    others = (replace(repair, share=torus_bound.MIXED * repair.share), *torus_bound.SURER)
    proved = [torus_bound.torus_bound(network, point, repair=one) for one in (repair, *others)]
    assert found in proved
    assert found <= proved[0]  # a repair that proves much more at all frequencies than at one is not the last


@pytest.mark.parametrize(("proofs", "expected"), [(1.1, "sure"), (2.0, "trials"), (20.0, "both")])
def test_the_effort_decides_how_the_repairs_are_chosen(
    proofs: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    form = torus_form(on_tori(simplified(Stages(nn.ReLU(), False).double().eval(), 2, 8, 8), widest=1000))
    point = form.search(steps=20, tolerance=0.0)
    calls: list[tuple[Repair | None, int]] = []

    def prove(*_: object, repair: Repair | None = None, trials: int = 0, **__: object) -> float:
        calls.append((repair, trials))
        return 2 * point.value

    monkeypatch.setattr(type(form), "prove", prove)
    others = (Repair(1e-2), Repair(1e-3))
    upper, spent = proof_within(form, point, proofs * form.cost, repairs=others)
    assert upper == 2 * point.value
    assert spent <= proofs * form.cost * (1 + 1e-9)
    repairs, trials = [repair for repair, _ in calls], [count for _, count in calls]
    if expected == "sure":
        assert calls == [(SURE, 0)]
    elif expected == "trials":
        assert repairs == [SURE]
        assert trials[0] >= 3
    else:
        assert repairs == [*others, SURE]
        assert trials == [0, 0, 16]


def test_narrower_regions_whose_repairs_can_be_compared_come_before_wider_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    output = simplified(Stages(nn.ReLU(), False).double().eval(), 2, 8, 8)
    wide, narrow = (torus_form(on_tori(output, widest=widest)) for widest in (1000, 4))
    assert len(narrow.order) > len(wide.order)
    narrow_cost, wide_cost = 1.0, 4.0
    costs = {len(narrow.order): narrow_cost, len(wide.order): wide_cost}
    monkeypatch.setattr(network_forms, "torus_cost", lambda torus: costs[len(torus.order)])
    monkeypatch.setattr(network_forms, "COUPLED", (1000, 4))
    monkeypatch.setattr(network_forms, "WIDEST", 1)

    def chosen(effort: float) -> int:
        form, _ = network_forms.form_within(output, effort + wide.first * wide.step)
        assert form is not None
        return len(form.order)

    assert chosen(1.1 * wide_cost) == len(narrow.order)
    assert chosen(2.0 * wide_cost) == len(wide.order)
    assert chosen(1.1 * narrow_cost) == len(narrow.order)


@pytest.mark.parametrize(("channels", "widest"), [(24, 1000), (48, 64)])
def test_multipliers_refined_at_critical_frequencies_prove_more(
    channels: int, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search with two copies does not determine the multipliers of the last channels, whose mean all outputs use."""
    torch.manual_seed(0)
    model = Stages(nn.ReLU(), False, channels)
    model.head = nn.Linear(channels, channels)
    network = on_tori(simplified(model.double().eval(), 2, 8, 8), widest=widest)
    point = search(network.order, network.layers, copies=2, steps=60)
    monkeypatch.setattr(torus_bound, "REFINEMENT", 0.0)
    coarse = torus_bound.torus_bound(network, point, trials=8)
    monkeypatch.setattr(torus_bound, "REFINEMENT", math.inf)
    fine = torus_bound.torus_bound(network, point, trials=8)
    assert attained(model, 2, 8, 8) <= fine
    assert point.value * (1 - 1e-6) <= fine <= point.value * (1 + 0.3 * (coarse / point.value - 1))


def test_refined_multipliers_that_prove_less_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Stages(nn.ReLU(), False, 24)
    model.head = nn.Linear(24, 24)
    network = on_tori(simplified(model.double().eval(), 2, 8, 8), widest=1000)
    point = search(network.order, network.layers, copies=2, steps=60)

    def doubled(*_: object) -> FixedPoint:
        return replace(point, multipliers={node: 4 * value for node, value in point.multipliers.items()})

    monkeypatch.setattr(torus_bound, "refined", doubled)
    monkeypatch.setattr(torus_bound, "REFINEMENT", math.inf)
    found = torus_bound.torus_bound(network, point, trials=8)
    monkeypatch.setattr(torus_bound, "REFINEMENT", 0.0)
    assert found == torus_bound.torus_bound(network, point, trials=8)
