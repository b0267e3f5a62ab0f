"""The numbers of a run in external formats: trackers, and the metadata of a model card."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from robustres.errors import InputError
from robustres.reports import to_mlflow, to_wandb, write_eval_results, write_report
from robustres.reports.hub import front_matter
from robustres.reports.run import load_run
from robustres.reports.trackers import metrics, track


def test_the_metrics_are_the_summary(tmp_path: Path, write_run: Any) -> None:
    summary = load_run(write_run(tmp_path / "net", count=50)).summary
    found = metrics(summary)
    assert found["clean"] == summary["clean"]["accuracy"]
    for row in summary["robust"]:
        eps = f"{round(row['eps'] * 255)}_255"
        assert found[f"robust/{row['norm']}/{eps}"] == row["accuracy"]
    assert found["lipschitz/upper"] == summary["lipschitz"]["upper"]
    assert found["block/stage.0"] == summary["lipschitz"]["blocks"][1]["upper"]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-./") for name in found)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mlflow or wandb"):
        track(tmp_path, "notebook")


@pytest.mark.filterwarnings("default")
def test_mlflow_has_the_numbers_and_the_files(tmp_path: Path, write_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    folder = write_run(tmp_path / "net", count=50)
    write_report(folder)
    tracked = mlflow.get_run(to_mlflow(folder))
    assert tracked.data.metrics == pytest.approx(metrics(load_run(folder).summary))
    assert tracked.data.params["data"] == "digits"
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(tracked.info.run_id)}
    assert {"summary.json", "report.html"} <= names


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_writes_offline(tmp_path: Path, write_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = write_run(tmp_path / "net", count=50)
    write_report(folder)
    assert to_wandb(folder)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_model_card_begins_with_metadata_that_the_hub_reads(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / 'a "net"', count=50)
    write_report(folder)
    _, matter, text = (folder / "model_card.md").read_text().split("---\n", 2)
    assert text.lstrip().startswith("## Robustness")
    (entry,) = yaml.safe_load(matter)["model-index"]
    run = load_run(folder)
    assert entry["name"] == run.name
    (result,) = entry["results"]
    assert result["task"] == {"type": "image-classification"}
    clean = result["metrics"][0]
    assert clean["value"] == pytest.approx(100 * run.summary["clean"]["accuracy"], abs=1e-4)
    sides = {metric["args"]["side"] for metric in result["metrics"]}
    assert any(side.startswith("upper bound") for side in sides)
    assert any(side.startswith("lower bound") for side in sides)


def test_the_hubs_own_reader_understands_the_metadata(tmp_path: Path, write_run: Any) -> None:
    hub = pytest.importorskip("huggingface_hub")
    matter = front_matter(load_run(write_run(tmp_path / "net", count=20)))
    card = hub.ModelCard(matter + "\nText.\n")
    results = card.data.eval_results
    assert len(results) > 4
    assert {result.task_type for result in results} == {"image-classification"}


def test_a_result_for_a_benchmark_of_the_hub_is_what_its_reader_expects(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "net", count=20)
    robust = load_run(folder).summary["robust"][0]
    measure = f"robust@{robust['norm']}:{robust['eps']!r}"
    path = write_eval_results(folder, f"org/benchmark:first={measure}")
    assert path == folder / ".eval_results" / "first.yaml"
    content = yaml.safe_load(path.read_text())
    assert content[0]["value"] == pytest.approx(100 * robust["accuracy"], abs=1e-4)
    hub = pytest.importorskip("huggingface_hub", minversion="1.3")
    (entry,) = hub.parse_eval_result_entries(content)
    assert (entry.dataset_id, entry.task_id) == ("org/benchmark", "first")
    assert "20 images" in entry.notes


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("benchmark=clean", "DATASET:TASK=MEASURE"),
        ("org/benchmark:../up=clean", "DATASET:TASK=MEASURE"),
        ("org/benchmark:task=robust@l2:77", "did not count robust@l2:77"),
    ],
)
def test_results_that_the_run_does_not_have_are_refused(
    tmp_path: Path, write_run: Any, entry: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        write_eval_results(write_run(tmp_path / "net", count=20), entry)
