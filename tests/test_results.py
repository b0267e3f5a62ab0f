"""Tables, the run folder and the summary, checked against cases counted by hand."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustres.errors import InputError
from robustres.results import RunFolder, empty_table, sandwich_violations, summarise, typed_table, write_atomically


def sample(index: int, *, correct: bool = True) -> dict[str, Any]:
    return {
        "index": index,
        "label": 1,
        "prediction": 1 if correct else 0,
        "correct": correct,
        "margin": 0.5,
        "finite": True,
    }


def attack(
    index: int, distance: float, *, name: str = "pgd", norm: str = "linf", prediction: int = 2
) -> dict[str, Any]:
    return {
        "index": index, "attack": name, "norm": norm, "eps": 0.1, "fooled": math.isfinite(distance),
        "distance": distance, "l2": 2 * distance, "linf": distance, "adversarial_prediction": prediction,
        "loss": 0.1, "verified": True, "steps": 3, "gradient_evaluations": 3,
    }  # fmt: skip


def certificate(index: int, radius: float, *, norm: str = "linf") -> dict[str, Any]:
    return {
        "index": index, "certificate": "lipschitz", "function": "network", "norm": norm, "radius": radius,
        "prediction": 1, "source": "product", "guarantee": "deterministic",
    }  # fmt: skip


MANIFEST: dict[str, Any] = {
    "model": {"source": "m", "sha256": "a", "parameters": 3},
    "data": {"source": "d", "sha256": "b", "classes": 3},
    "lipschitz": {"norm": "l2", "upper": 2.0, "lower": 1.0},
    "eps": {"linf": [0.1]},
    "refused": [],
}


def tables(**rows: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    return {name: typed_table(name, rows.get(name, [])) for name in ("samples", "attacks", "certificates", "blocks")}


def test_the_summary_agrees_with_a_count_by_hand() -> None:
    summary = summarise(
        MANIFEST,
        tables(
            samples=[sample(0), sample(1), sample(2), sample(3, correct=False)],
            attacks=[attack(0, math.inf), attack(1, 0.1), attack(2, math.inf), attack(3, 0.0, prediction=0)],
            certificates=[certificate(0, 0.1), certificate(1, 0.05), certificate(2, 0.2), certificate(3, 0.0)],
        ),
    )
    assert summary["clean"] == {"correct": 3, "accuracy": 0.75}
    assert summary["data"]["samples"] == 4
    assert summary["attacks"] == [{"attack": "pgd", "norm": "linf", "eps": 0.1, "robust": 2, "accuracy": 0.5}]
    assert [(row["certified"], row["accuracy"]) for row in summary["certificates"]] == [(2, 0.5)]
    assert summary["sandwich"] == {"violations": 0}


def test_robustness_to_all_attacks_counts_examples_of_every_attack_and_norm() -> None:
    found = [
        *(attack(index, 0.1 if index == 0 else math.inf) for index in range(4)),
        *(attack(index, 0.1 if index == 1 else math.inf, name="fgsm") for index in range(4)),
        {**attack(2, 0.3, norm="l2"), "eps": 0.5, "linf": 0.05},  # found in l2, but also close enough in linf
    ]
    samples = [sample(0), sample(1), sample(2), sample(3), sample(4, correct=False)]
    manifest = {**MANIFEST, "eps": {"linf": [0.1, 0.2], "l2": [0.5]}}
    rows = summarise(manifest, tables(samples=samples, attacks=found))["robust"]
    assert rows == [
        {"norm": "linf", "eps": 0.1, "robust": 1, "accuracy": 0.2},  # 0.2 was not attacked
        {"norm": "l2", "eps": 0.5, "robust": 1, "accuracy": 0.2},
    ]


def test_an_example_inside_a_radius_is_a_violation_in_the_norm_of_the_certificate() -> None:
    attacks = typed_table("attacks", [attack(0, 0.1)])
    for norm, measured in (("linf", 0.1), ("l2", 0.2)):
        inside = typed_table("certificates", [certificate(0, measured * 1.01, norm=norm)])
        outside = typed_table("certificates", [certificate(0, measured, norm=norm)])
        assert len(sandwich_violations(attacks, inside)) == 1
        assert len(sandwich_violations(attacks, outside)) == 0


def test_an_example_that_keeps_the_certified_prediction_violates_nothing() -> None:
    attacks = typed_table("attacks", [attack(0, 0.0, prediction=1)])
    assert len(sandwich_violations(attacks, typed_table("certificates", [certificate(0, 1.0)]))) == 0


def test_where_certificates_disagree_only_the_one_for_another_prediction_is_violated() -> None:
    attacks = typed_table("attacks", [attack(0, 0.1, prediction=0)])
    ours, other = certificate(0, 1.0), {**certificate(0, 1.0), "certificate": "best", "prediction": 0}
    for rows in ([ours, other], [other, ours]):
        found = sandwich_violations(attacks, typed_table("certificates", rows))
        assert found["certificate"].tolist() == [ours["certificate"]]


def test_a_table_with_a_wrong_column_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="radius"):
        typed_table("certificates", [{"index": 1, "radius": 2.0}])


def test_a_run_without_rows_has_typed_empty_tables(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.table("attacks").dtypes.to_dict() == empty_table("attacks").dtypes.to_dict()
    with pytest.raises(InputError, match="contains no run"):
        folder.manifest()


def test_parts_are_read_back_in_order_with_their_types(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_part("samples", "000512", [sample(512)])
    folder.write_part("samples", "000000", [sample(0), sample(1)])
    read = folder.table("samples")
    assert read["index"].tolist() == [0, 1, 512]
    assert read.dtypes.to_dict() == empty_table("samples").dtypes.to_dict()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_smoothed_classifier_is_never_compared_with_attacks_on_the_network() -> None:
    attacks = typed_table("attacks", [attack(0, 0.1)])
    radius = certificate(0, 1.0)
    assert len(sandwich_violations(attacks, typed_table("certificates", [radius]))) == 1
    smoothed = {
        **radius,
        "certificate": "vote",
        "function": "smoothed(sigma=0.5)",
        "guarantee": "probability 1 - 0.001",
    }
    assert len(sandwich_violations(attacks, typed_table("certificates", [smoothed]))) == 0
    assert len(sandwich_violations(attacks, empty_table("certificates"))) == 0


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_violations_are_those_of_all_pairs(data: st.DataObject) -> None:
    """Compared with the definition, pair by pair."""
    number = st.sampled_from([0.0, 0.1, 0.2, 0.3, math.inf, math.nan])
    norms = st.sampled_from(["l1", "l2", "linf"])
    attacks = [
        {**attack(data.draw(st.integers(0, 2)), data.draw(number), norm=data.draw(norms)),
         "fooled": data.draw(st.booleans()), "l2": data.draw(number), "linf": data.draw(number),
         "adversarial_prediction": data.draw(st.integers(0, 1))}
        for _ in range(data.draw(st.integers(0, 6)))
    ]  # fmt: skip
    certificates = [
        {**certificate(data.draw(st.integers(0, 2)), data.draw(number), norm=data.draw(norms)),
         "function": data.draw(st.sampled_from(["network", "smoothed 0.5"])),
         "prediction": data.draw(st.integers(0, 1))}
        for _ in range(data.draw(st.integers(0, 6)))
    ]  # fmt: skip
    expected = []
    for c in certificates:
        for a in attacks:
            measured = (
                a[c["norm"]] if c["norm"] in ("l2", "linf") else a["distance"] if a["norm"] == c["norm"] else math.nan
            )
            same = c["index"] == a["index"] and a["fooled"] and c["function"] == "network"
            if same and a["adversarial_prediction"] != c["prediction"] and measured < c["radius"]:
                expected.append((c["index"], c["norm"], c["radius"], measured))
    found = sandwich_violations(typed_table("attacks", attacks), typed_table("certificates", certificates))
    listed = zip(found["index"], found["norm"], found["radius"], found["measured"], strict=True)
    assert sorted(listed) == sorted(expected)
