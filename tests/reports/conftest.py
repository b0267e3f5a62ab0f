"""Realistic synthetic run folders with every table but without a network, since reports read nothing but tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustres.results import RunFolder

EPS = {"l2": [36 / 255, 72 / 255, 108 / 255], "linf": [2 / 255, 8 / 255]}
DIMENSION = 64
WriteRun = Callable[..., Path]


def manifest(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": name,
        "command": ["robustres", "evaluate", "my net.safetensors", "--data", "digits"],
        "created": "2026-01-02T03:04:05+00:00",
        "model": {"source": "my net.safetensors", "sha256": "ab" * 32, "parameters": 12345},
        "data": {
            "source": "digits",
            "sha256": "cd" * 32,
            "classes": 10,
            "class_names": [str(digit) for digit in range(10)],
        },
        "eps": EPS,
        "lipschitz": {"norm": "l2", "upper": 9.1, "lower": 5.2},
        "refused": [],
        "settings": {"attacks": ["fgsm", "pgd"], "batch_size": 256, "attack_settings": {"pgd": {"steps": 20}}},
        "seed": 0,
        "dtype": {"attack": "float32", "certify": "float64"},
        "tf32": False,
        "hardware": {"cpu": "x86_64", "cores": 2, "gpu": None, "device": "cpu"},
        "versions": {"robustres": "0.1.0", "python": "3.11", "torch": "2.6"},
    } | changes


def sample_rows(random: np.random.Generator, count: int, skill: float) -> pd.DataFrame:
    labels = np.arange(count) % 10
    correct = random.random(count) < skill
    prediction = np.where(correct, labels, (labels + random.integers(1, 10, count)) % 10)
    margin = np.where(correct, 1, -1) * random.gamma(3.0, 1.0, count)
    return pd.DataFrame(
        {
            "index": np.arange(count),
            "label": labels,
            "prediction": prediction,
            "correct": correct,
            "margin": margin,
            "finite": True,
        }
    )


def attack_rows(random: np.random.Generator, samples: pd.DataFrame, true_radius: np.ndarray) -> pd.DataFrame:
    """FGSM and PGD at every eps: PGD finds an example a little outside the true radius, FGSM misses some."""
    frames = []
    for norm, budgets in EPS.items():
        for attack, excess in (("fgsm", 1.6), ("pgd", 1.1)):
            for eps in budgets:
                scale = 1.0 if norm == "l2" else DIMENSION**-0.5
                broken = ~samples["correct"] | (true_radius * scale * excess < eps)
                distance = np.where(broken, eps, np.inf) * samples["correct"]
                distance = np.where(samples["correct"], np.where(broken, eps, np.inf), 0.0)
                l2 = distance * (1.0 if norm == "l2" else 0.9 * DIMENSION**0.5)
                linf = distance * (0.4 if norm == "l2" else 1.0)
                away = (samples["label"] + random.integers(1, 10, len(samples))) % 10
                frames.append(
                    pd.DataFrame(
                        {
                            "index": samples["index"],
                            "attack": attack,
                            "norm": norm,
                            "eps": eps,
                            "fooled": broken,
                            "distance": distance,
                            "l2": l2,
                            "linf": linf,
                            "adversarial_prediction": np.where(
                                broken & samples["correct"], away, samples["prediction"]
                            ),
                            "loss": np.where(broken, 0.5, -0.5),
                            "verified": True,
                            "steps": 1 if attack == "fgsm" else 20,
                            "gradient_evaluations": 1 if attack == "fgsm" else 20,
                        }
                    )
                )
    return pd.concat(frames, ignore_index=True)


def certificate_rows(samples: pd.DataFrame, radius: np.ndarray) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "index": samples["index"],
                    "certificate": "lipschitz",
                    "function": "network",
                    "norm": norm,
                    "radius": radius * scale,
                    "prediction": samples["prediction"],
                    "source": "joint",
                    "guarantee": "deterministic",
                }
            )
            for norm, scale in (("l2", 1.0), ("linf", DIMENSION**-0.5))
        ],
        ignore_index=True,
    )


def block_rows(looseness: float) -> list[dict[str, Any]]:
    rows = []
    for name, kind, textbook, joint, lower in (
        ("stem", "convolution", 1.5, np.nan, 1.45),
        ("stage.0", "residual", 3.1, 1.9, 1.6),
        ("stage.1", "residual", 4.2, 2.2, 1.8),
        ("head", "linear", 1.2, np.nan, 1.19),
    ):
        textbook, joint = textbook * looseness, joint * looseness
        rows.append(
            {
                "name": name,
                "kind": kind,
                "shortcut": 1.0 if kind == "residual" else np.nan,
                "branch": textbook - 1 if kind == "residual" else textbook,
                "textbook": textbook,
                "joint": joint,
                "upper": np.nanmin([textbook, joint]),
                "lower": lower,
                "floor": 1.05 * lower if kind == "residual" else np.nan,
                "method": "textbook" if np.isnan(joint) else "joint",
                "guarantee": "deterministic",
            }
        )
    return rows


def example_rows(random: np.random.Generator, attacks: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    rows = []
    found = attacks[attacks["fooled"] & (attacks["distance"] > 0) & (attacks["index"] < count)]
    for row in found.to_dict(orient="records"):
        clean = np.zeros((1, 8, 8), np.float32)
        clean[0, 1:7, 2 + row["index"] % 3 : 5] = np.linspace(0.4, 0.9, 6, dtype=np.float32)[:, None]
        noise = random.standard_normal((1, 8, 8)).astype(np.float32)
        noise *= row["distance"] / (np.abs(noise).max() if row["norm"] == "linf" else np.linalg.norm(noise))
        keys = {key: row[key] for key in ("index", "attack", "norm", "eps")}
        shape = {"channels": 1, "height": 8, "width": 8}
        rows.append(keys | shape | {"clean": clean.tobytes(), "adversarial": (clean + noise).tobytes()})
    return rows


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """A function that writes a run folder: write_run(path, count=200, skill=0.95, ...)."""

    def write(
        path: Path,
        *,
        count: int = 200,
        seed: int = 0,
        skill: float = 0.95,
        looseness: float = 1.0,
        parts: int = 2,
        without: tuple[str, ...] = (),
        **changes: Any,
    ) -> Path:
        random = np.random.default_rng(seed)
        folder = RunFolder(path)
        folder.write_manifest(manifest(path.name, **changes))
        samples = sample_rows(random, count, skill)
        true_radius = 0.2 * random.gamma(3.0, 0.6, count)
        attacks = attack_rows(random, samples, true_radius)
        certificates = certificate_rows(samples, true_radius * random.uniform(0.5, 0.95, count) / looseness)
        bounds = np.linspace(0, count, parts + 1).astype(int)
        for part in range(parts):
            for name, frame in (("samples", samples), ("attacks", attacks), ("certificates", certificates)):
                inside = frame["index"].between(bounds[part], bounds[part + 1] - 1)
                if name not in without:
                    folder.write_part(name, f"{part:04d}", frame[inside])
        folder.write_part("examples", "0000", example_rows(random, attacks, 24))
        if "blocks" not in without:
            folder.write_part("blocks", "all", block_rows(looseness))
        masking = {"attack": "pgd", "norm": "linf", "eps": 8 / 255, "check": "zero gradients", "value": 0.0}
        folder.write_part("diagnosis", "all", [masking | {"suspicious": False, "verdict": "No gradient vanishes."}])
        epochs = np.arange(1, 11)
        folder.write_part(
            "training",
            "all",
            pd.DataFrame(
                {
                    "epoch": epochs,
                    "loss": 2 * 0.7**epochs,
                    "clean": 1 - 0.6**epochs,
                    "certified": 0.7 * (1 - 0.7**epochs),
                }
            ),
        )
        return path

    return write
