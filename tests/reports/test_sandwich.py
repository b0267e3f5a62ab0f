"""The two sides of each sample, counted by hand on a run of six samples."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustres.reports.accuracies import accuracy_rows
from robustres.reports.block_figure import block_figures
from robustres.reports.ledger import ledger
from robustres.reports.run import Run, load_run
from robustres.reports.sandwich import accuracy_curve, outcome, per_sample
from robustres.reports.verdict import verdict
from robustres.results import RunFolder

EPS = 0.5
# radius, distance found by pgd in l2, correct
SAMPLES = [(0.5, math.inf, True), (0.2, 0.5, True), (0.4, math.inf, True), (0.9, 0.0, False), (0.6, 0.7, True)]
OUTCOMES = ["certified", "broken", "open", "misclassified", "certified"]


def attack_row(index: int, norm: str, eps: float, distance: float, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "attack": "pgd",
        "norm": norm,
        "eps": eps,
        "fooled": math.isfinite(distance),
        "distance": distance,
        "l2": distance,
        "linf": distance / 2,
        "adversarial_prediction": 1,
        "loss": 0.1,
        "verified": True,
        "steps": 20,
        "gradient_evaluations": 20,
    } | changes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "hand")
    folder.write_manifest({"eps": {"l2": [EPS]}})
    samples, attacks, certificates = [], [], []
    for index, (radius, distance, correct) in enumerate(SAMPLES):
        prediction = 0 if correct else 1
        samples.append(
            {"index": index, "label": 0, "prediction": prediction, "correct": correct} | {"margin": 1.0, "finite": True}
        )
        attacks.append(attack_row(index, "l2", math.nan, distance))
        certificates.append(
            {
                "index": index,
                "certificate": "lipschitz",
                "function": "network",
                "norm": "l2",
                "radius": radius,
                "prediction": prediction,
            }
            | {"source": "joint", "guarantee": "deterministic"}
        )
    for name, rows in (("samples", samples), ("attacks", attacks), ("certificates", certificates)):
        folder.write_part(name, "all", rows)
    return folder


def loaded(folder: RunFolder) -> tuple[Run, pd.DataFrame]:
    run = load_run(folder.path)
    return run, per_sample(run)


def test_each_sample_has_the_outcome_counted_by_hand(folder: RunFolder) -> None:
    _, samples = loaded(folder)
    assert outcome(samples, "l2", EPS).tolist() == OUTCOMES


def test_a_radius_of_exactly_eps_is_certified_and_a_distance_of_exactly_eps_is_broken(folder: RunFolder) -> None:
    run, samples = loaded(folder)
    at_eps = accuracy_curve(run, samples, "l2").set_index("eps").loc[EPS]
    assert at_eps["certified"] == 2 / 5
    assert at_eps["attacked"] == 3 / 5
    assert at_eps["clean"] == 4 / 5


def test_the_certified_curve_never_lies_above_the_attacked_one(folder: RunFolder) -> None:
    run, samples = loaded(folder)
    curve = accuracy_curve(run, samples, "l2")
    assert (curve["certified"] <= curve["attacked"]).all()
    assert curve["eps"].is_monotonic_increasing
    assert curve["certified"].is_monotonic_decreasing


def test_an_example_from_another_norm_counts_with_its_measured_distance(folder: RunFolder) -> None:
    folder.write_part("attacks", "more", [attack_row(2, "linf", 0.1, 0.1, l2=0.45)])
    run, samples = loaded(folder)
    assert samples.loc[2, "distance_l2"] == 0.45
    assert samples.loc[2, "distance_linf"] == 0.1
    assert samples.loc[1, "distance_linf"] == 0.25
    assert run.norms == ["l2", "linf"]


def test_an_example_inside_the_radius_is_a_contradiction_that_comes_first(folder: RunFolder) -> None:
    folder.write_part("attacks", "more", [attack_row(0, "l2", 0.3, 0.3)])
    run, samples = loaded(folder)
    assert outcome(samples, "l2", EPS).tolist()[0] == "contradiction"
    assert verdict(run, samples)[0].tone == "defect"


def test_the_attacked_share_is_undefined_at_an_eps_that_was_not_attacked(folder: RunFolder) -> None:
    folder.write_part("attacks", "all", [attack_row(index, "l2", 0.25, math.inf) for index in range(5)])
    run, samples = loaded(folder)
    curve = accuracy_curve(run, samples, "l2").set_index("eps")
    assert curve.loc[0.25, "attacked"] == 4 / 5
    assert math.isnan(curve.loc[EPS, "attacked"])


def test_a_probabilistic_guarantee_is_stated_wherever_the_number_appears(folder: RunFolder) -> None:
    certificates = folder.table("certificates").assign(guarantee="probability 1 - 1e-12")
    folder.write_part("certificates", "all", certificates)
    run, samples = loaded(folder)
    assert any("proven with probability 1 - 1e-12" in sentence.text for sentence in verdict(run, samples))
    rows = [row for row in accuracy_rows(run) if row["kind"] == "certificate"]
    assert [row["guarantee"] for row in rows] == ["probability 1 - 1e-12"]
    assert rows[0]["count"] == 2


def test_the_ledger_shares_the_cost_by_logarithms(folder: RunFolder) -> None:
    block = {"kind": "residual", "shortcut": 1.0, "branch": 1.0, "joint": math.nan, "method": "textbook", "floor": 1.0}
    block["guarantee"] = "deterministic"
    folder.write_part(
        "blocks",
        "all",
        [
            block | {"name": "a", "textbook": 2.0, "upper": 2.0, "lower": 1.6},
            block | {"name": "b", "textbook": 8.0, "upper": 8.0, "lower": 0.0},
        ],
    )
    blocks = ledger(loaded(folder)[0])
    assert blocks["log_share"].tolist() == pytest.approx([0.25, 0.75])
    assert blocks["slack"].tolist()[0] == pytest.approx(1.25)
    assert math.isnan(blocks["slack"].tolist()[1])


def test_blocks_without_textbook_or_joint_bound_are_drawn_by_the_bound_used(folder: RunFolder) -> None:
    block = {"kind": "linear", "shortcut": math.nan, "branch": math.nan, "textbook": math.nan, "joint": math.nan}
    block |= {"floor": math.nan, "method": "dense", "guarantee": "deterministic"}
    folder.write_part("blocks", "all", [block | {"name": "stem", "upper": 2.0, "lower": 1.9}])
    run, _ = loaded(folder)
    (figure,) = block_figures(run, ledger(run))
    drawn = json.dumps(figure.spec)
    assert "bound used" in drawn
    assert "joint bound'" not in drawn
    assert "textbook bound'" not in drawn
