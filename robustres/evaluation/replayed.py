"""Evaluates the adversarial examples stored by a run again, on the model and, for an ONNX file, in onnxruntime."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustres.errors import InputError, MissingExtraError
from robustres.guard import evaluation_mode
from robustres.models import LoadedModel, load_model
from robustres.results import RunFolder

Answers = Callable[[NDArray[np.float32]], NDArray[np.int64]]
AT_ONCE = 256
KEYS = ["index", "attack", "norm", "eps"]


def replay(
    folder: Path | str,
    model: LoadedModel | nn.Module | str | None = None,
    *,
    device: torch.device | str = "cpu",
    download: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> pd.DataFrame:
    """One row per example stored by the run in `folder`: the recorded prediction and the prediction now.

    model: the network, or its specification; by default that in the run's manifest, with its normalisation.
    Columns: index, attack, norm, eps, label, recorded (the prediction then), answer (the prediction now), fooled
        (whether the latter is not the label) and, for an ONNX file, onnxruntime (its prediction).
    Raises InputError if the run stored no examples (see `Settings.save_examples`) or the weights differ.
    """
    run = RunFolder(Path(folder))
    run.digest()
    manifest, samples = run.manifest(), run.table("samples").set_index("index")
    recorded = run.table("attacks")[[*KEYS, "adversarial_prediction"]]
    loaded = model_of_run(run, model, download)
    other = _onnxruntime(loaded, manifest)
    rows: list[pd.DataFrame] = []
    total = len(run.parts().names())
    with evaluation_mode(loaded.module.to(device)):
        for done, (frame, images) in enumerate(run.adversarial()):
            progress("replay", done, total)
            found = frame[KEYS].merge(recorded, on=KEYS, how="left")
            found = found.rename(columns={"adversarial_prediction": "recorded"})
            found.insert(4, "label", samples["label"].reindex(found["index"]).to_numpy())
            found["answer"] = _answers(loaded.module, images, device)
            found["fooled"] = found["answer"] != found["label"]
            if other is not None:
                found["onnxruntime"] = other(images)
            rows.append(found)
    progress("replay", total, total)
    if not rows:
        raise InputError(f"{run.path} stored no examples to replay; evaluate with --save-examples")
    return pd.concat(rows, ignore_index=True)


def model_of_run(run: RunFolder, model: LoadedModel | nn.Module | str | None, download: bool) -> LoadedModel:
    """The model, or that in the words of the run's manifest; InputError where its weights are not those of the run."""
    known = run.manifest()["model"]
    if isinstance(model, LoadedModel):
        loaded = model
    else:
        words = known.get("source") if model is None else model
        if not words:
            raise InputError("the run does not record which model it was made with; give the model")
        loaded = load_model(words, mean=known.get("mean"), std=known.get("std"), download=download)
    if loaded.sha256 != known.get("sha256"):
        raise InputError(
            f"{run.path} was made with other weights (sha256 {str(known.get('sha256'))[:12]}) "
            f"than {loaded.source} has ({loaded.sha256[:12]}); give the model of the run"
        )
    return loaded


def _answers(module: nn.Module, images: NDArray[np.float32], device: torch.device | str) -> NDArray[np.int64]:
    with torch.no_grad():
        batches = torch.split(torch.from_numpy(images), AT_ONCE)
        answers: list[Tensor] = [module(batch.to(device)).argmax(dim=1).cpu() for batch in batches]
    found: NDArray[np.int64] = torch.cat(answers).numpy()
    return found


def _onnxruntime(loaded: LoadedModel, manifest: dict[str, Any]) -> Answers | None:
    """The predictions of onnxruntime, if the model is an ONNX file with its own weights."""
    file = Path(loaded.source)
    if file.suffix != ".onnx" or not file.is_file():
        return None
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("replaying an ONNX file", "onnx") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    size = entry.shape[0] if isinstance(entry.shape[0], int) and entry.shape[0] > 0 else AT_ONCE
    channels = (1, -1, 1, 1)
    mean, std = (
        np.array(manifest["model"].get(name) or [default], dtype=np.float32).reshape(channels)
        for name, default in (("mean", 0.0), ("std", 1.0))
    )

    def answers(images: NDArray[np.float32]) -> NDArray[np.int64]:
        found = []
        for start in range(0, len(images), size):
            batch = (images[start : start + size] - mean) / std
            short = size - len(batch) if entry.shape[0] == size else 0
            padded = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)]) if short else batch
            found.append(session.run(None, {entry.name: padded})[0][: len(batch)].argmax(axis=1))
        return np.concatenate(found)

    return answers


def replay_summary(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """For each attack, norm and eps: the number of examples, of unchanged predictions, and of examples that still fool
    the model.
    """
    summary = []
    groups: Any = rows.groupby(["attack", "norm", "eps"], dropna=False, sort=False)
    for (attack, norm, eps), group in groups:
        row = {"attack": attack, "norm": norm, "eps": None if math.isnan(eps) else eps, "examples": len(group)}
        row |= {"same_answer": int((group["answer"] == group["recorded"]).sum()), "fooled": int(group["fooled"].sum())}
        if "onnxruntime" in group:
            row["onnxruntime"] = int((group["onnxruntime"] == group["recorded"]).sum())
        summary.append(row)
    return summary
