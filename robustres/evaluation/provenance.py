"""The manifest of a run: what was evaluated, with which settings, on which machine."""

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robustres import __version__
from robustres.certify import LipschitzReport
from robustres.certify.graph.capture import device_of
from robustres.data import ImageSet
from robustres.evaluation.plan import planned_attacks
from robustres.evaluation.plugins import attack_settings, described
from robustres.evaluation.settings import Settings
from robustres.models import LoadedModel
from robustres.models.networks.normalised import Normalised
from robustres.precision import floating_types, image_dtype, named
from robustres.results import SCHEMA_VERSION, Requirement


def build_manifest(
    model: LoadedModel,
    data: ImageSet,
    settings: Settings,
    report: LipschitzReport | None,
    *,
    name: str,
    classes: int,
    device: torch.device,
    parts: list[str],
    require: Sequence[Requirement] = (),
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Everything about a run that is not a table; `identity` is the part that a resumed run must share.

    classes: number of classes of the model; those that do not occur in the data are named by their number.
    parts: the names of the parts of the samples.
    """
    same = identity(model, data, settings)
    return {
        "schema_version": SCHEMA_VERSION,
        "id": run_id(same),
        "name": name,
        "command": command or sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": same,
        "samples": len(data),
        "parts": parts,
        "require": list(map(str, require)),
        "model": {"source": model.source, "sha256": model.sha256, "parameters": model.parameters}
        | ({"note": model.note} if model.note else {})
        | _normalisation(model),
        "data": {
            **data.facts(),
            "classes": classes,
            "class_names": [*data.class_names, *map(str, range(data.classes, classes))],
        },
        "eps": settings.reported_eps(),
        "lipschitz": _bound(report),
        "refused": [{"path": row.path, "operation": row.operation} for row in (report.refused if report else ())],
        "attacks": [
            {
                "name": attack.name,
                "norm": attack.threat.norm,
                "eps": attack.threat.eps if math.isfinite(attack.threat.eps) else None,
                "settings": attack_settings(attack),
            }
            for attack in planned_attacks(settings)
        ],
        "certificates": [described(entry) for entry in settings.certificates()] if settings.certify else [],
        "selection": f"the first {len(data)} samples of {data.source} in its order, or all if it has no more",
        "statement": {
            "perturbations": "of the images as given to the model, after any resizing, that stay in [0, 1]",
            "samples": "those listed; nothing is stated about others",
        },
        "settings": {
            **settings.to_json(),
            "batch_size": settings.images_at_once(data.image_shape),
            "part_size": settings.samples_per_part(data.image_shape),
        },
        "seed": settings.seed,
        "dtype": arithmetic(model, data, settings),
        "tf32": tf32(),
        "hardware": hardware(device),
        "versions": versions(),
    }


def identity(model: LoadedModel, data: ImageSet, settings: Settings) -> dict[str, Any]:
    """What determines a run's results: the weights, the data, and every setting that can change a number."""
    decisive = {key: value for key, value in settings.to_json().items() if key != "batch_size"}
    decisive["part_size"] = settings.samples_per_part(data.image_shape)
    arithmetic = {"tf32": tf32(), "versions": versions()}
    return {"model": model.sha256, "data": data.sha256, "samples": len(data), **decisive, **arithmetic}


def run_id(same: dict[str, Any]) -> str:
    """An id by which a run can be cited: derived from everything that determines its numbers, so a repetition has the
    same id.
    """
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def tf32() -> dict[str, bool]:
    """For which operations a GPU may round its inputs to ten mantissa bits."""
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32}


def arithmetic(model: LoadedModel, data: ImageSet, settings: Settings) -> dict[str, str | None]:
    """The floating-point types of the weights, of the images as the network receives them, and of the certified
    network.
    """
    probe = data.batch(torch.arange(1)).to(device_of(model.module))
    weights = sorted(map(named, floating_types(model.module)))
    return {
        "weights": ", ".join(weights) or named(probe.dtype),
        "images": named(image_dtype(model.module, probe)),
        "certify": settings.dtype if settings.certify else None,
    }


def _normalisation(model: LoadedModel) -> dict[str, list[float]]:
    """The mean and standard deviation that were made part of the network, as decimals that round to the same
    float32.
    """
    if not isinstance(model.module, Normalised):
        return {}
    return {name: getattr(model.module, name).flatten().tolist() for name in ("mean", "std")}


def _bound(report: LipschitzReport | None) -> dict[str, Any] | None:
    if report is None or report.refused:
        return None
    sides = {"upper": report.upper, "lower": report.lower}
    finite = {side: value if math.isfinite(value) else None for side, value in sides.items()}
    return {"norm": "l2", **finite, "domain": report.domain}


def hardware(device: torch.device) -> dict[str, Any]:
    """A description of the machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "gpu": gpu,
        "device": str(device),
        "system": platform.platform(),
    }


def _processor() -> str:
    """The processor's name; Linux provides it only in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the software on which the numbers depend."""
    packages = ("torch", "numpy", "pandas", "pyarrow")
    return {"robustres": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
