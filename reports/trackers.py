"""A finished run written to an experiment tracker: the numbers of its summary under short names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustres.errors import InputError, MissingExtraError
from robustres.reports.run import load_run
from robustres.results import eps_words

FILES = ("summary.json", "report.html", "samples.csv", "blocks.csv", "digest.json")


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary as one flat dictionary, with names that MLflow and Weights & Biases allow.

    clean: accuracy. robust/NORM/EPS: the accuracy under all attacks together, an upper bound on the accuracy under the
        best attack. ATTACK/NORM/EPS: each attack alone. certified/CERTIFICATE/NORM/EPS: a lower bound. lipschitz/upper
        is a bound, lipschitz/lower an estimate; block/NAME are the bounds on the blocks.

    >>> metrics({"clean": {"accuracy": 0.5}, "robust": [{"norm": "l2", "eps": 8 / 255, "accuracy": 0.25}]})
    {'clean': 0.5, 'robust/l2/8_255': 0.25}
    """
    found: dict[str, float | None] = {"clean": (summary.get("clean") or {}).get("accuracy")}
    for row in summary.get("robust") or []:
        found[_name("robust", row)] = row["accuracy"]
    for row in summary.get("attacks") or []:
        found[_name(row["attack"], row)] = row["accuracy"]
    for row in summary.get("certificates") or []:
        found[_name(f"certified/{row['certificate']}", row)] = row["accuracy"]
    lipschitz = summary.get("lipschitz") or {}
    found |= {f"lipschitz/{side}": lipschitz.get(side) for side in ("upper", "lower")}
    found |= {f"block/{_plain(row['name'])}": row.get("upper") for row in lipschitz.get("blocks") or []}
    return {name: float(value) for name, value in found.items() if value is not None}


def _name(kind: str, row: Mapping[str, Any]) -> str:
    eps = "any" if row["eps"] is None else _plain(eps_words(row["eps"]))
    return f"{_plain(kind, also='/')}/{row['norm']}/{eps}"


def _plain(word: str, also: str = "") -> str:
    """A name with everything except letters, digits and _-. replaced by an underscore."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_-." + also) else "_" for letter in word
    )


def to_mlflow(folder: Path | str, *, experiment: str = "robustres") -> str:
    """Log a run's numbers, settings and files to MLflow and return its id in the tracker.

    The destination is MLflow's own setting (MLFLOW_TRACKING_URI): a server, a database, or a folder, which needs no
    connection. Raises MissingExtraError if MLflow is not installed, InputError if the folder contains no run.
    """
    folder, run = Path(folder), load_run(Path(folder))
    try:
        import mlflow
    except ImportError as error:
        raise MissingExtraError("logging to MLflow", "mlflow") from error
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=run.name) as tracked:
        mlflow.log_params(parameters(run.manifest))
        mlflow.log_metrics(metrics(run.summary))
        for file in _files(folder):
            mlflow.log_artifact(str(file))
        return str(tracked.info.run_id)


def to_wandb(folder: Path | str, *, project: str = "robustres") -> str:
    """Log a run's numbers, settings and files to Weights & Biases and return its id in the tracker.

    The destination is the tracker's own setting: WANDB_MODE=offline writes a folder `wandb` and needs no connection.
    Raises MissingExtraError if wandb is not installed, InputError if the folder contains no run.
    """
    folder, run = Path(folder), load_run(Path(folder))
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("logging to Weights & Biases", "wandb") from error
    with wandb.init(project=project, name=run.name, config=parameters(run.manifest)) as tracked:
        tracked.summary.update(metrics(run.summary))
        for file in _files(folder):
            tracked.save(str(file), base_path=str(folder), policy="now")
        return str(tracked.id)


TRACKERS: dict[str, Callable[[Path | str], str]] = {"mlflow": to_mlflow, "wandb": to_wandb}


def track(folder: Path | str, name: str) -> str:
    """Log a run to the tracker of that name; raises InputError, which lists the known ones, for any other name."""
    if name not in TRACKERS:
        raise InputError(f"a tracker must be {' or '.join(TRACKERS)}, got {name!r}")
    return TRACKERS[name](folder)


def parameters(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What identifies the run: the model, the data, the seed and the versions, as short strings."""
    model, data, versions = (manifest.get(key) or {} for key in ("model", "data", "versions"))
    found = {
        "run": manifest.get("id"),
        "model": model.get("source"),
        "model.sha256": model.get("sha256"),
        "data": data.get("source"),
        "data.sha256": data.get("sha256"),
        "seed": manifest.get("seed"),
        **{f"version.{name}": value for name, value in versions.items()},
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).is_file()]
