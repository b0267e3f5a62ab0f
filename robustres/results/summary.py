"""The summary of a run: the accuracies computed from its tables."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustres.results.nearest import largest_attacked_eps, nearest_examples
from robustres.results.requirement import Requirement
from robustres.results.sandwich import sandwich_violations
from robustres.results.schema import AVERAGE_CASE, SCHEMA_VERSION


def summarise(manifest: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The contract for scripts, from a run's manifest and tables. Accuracies are shares of all samples.

    `manifest` must contain "model", "data", "lipschitz" (norm, upper, lower; None if refused), "eps" (norm -> list of
    eps at which certificates are evaluated) and "refused" (list of path and operation).
    """
    samples = tables["samples"].set_index("index")
    correct = samples["correct"]
    total = len(samples)
    lipschitz = manifest["lipschitz"]
    summary = {
        "schema_version": SCHEMA_VERSION,
        "run": {"id": manifest.get("id")},
        "model": dict(manifest["model"]),
        "data": {**manifest["data"], "samples": total},
        "clean": {"correct": int(correct.sum()), "accuracy": _share(int(correct.sum()), total)},
        "attacks": _attack_rows(tables["attacks"], correct, manifest["eps"]),
        "robust": _robust_rows(tables["attacks"], correct, manifest["eps"]),
        "certificates": _certificate_rows(tables["certificates"], samples["label"], manifest["eps"]),
        "lipschitz": None if lipschitz is None else {**lipschitz, "blocks": block_records(tables["blocks"])},
        "sandwich": {"violations": len(sandwich_violations(tables["attacks"], tables["certificates"]))},
        "refused": list(manifest["refused"]),
    }
    required = [Requirement.read(text).met(summary) for text in manifest.get("require") or ()]
    return summary | {"requirements": required}


def robust_mask(attacks: pd.DataFrame, correct: pd.Series, eps: float) -> pd.Series:
    """Per sample: correct, and no example of these rows lies within eps. Rows of one norm; index by sample."""
    broken = attacks.loc[attacks["fooled"] & (attacks["distance"] <= eps), "index"]
    return correct & ~correct.index.isin(broken.unique())


def certified_mask(certificates: pd.DataFrame, labels: pd.Series, eps: float) -> pd.Series:
    """Per sample: the label is the class certified at eps (radius >= eps; radii are already rounded down).

    Rows of one certificate and norm; labels by sample index. For a certificate of the network, the certified class is
    the network's prediction whenever the radius is positive, so that such a sample is also correct.
    """
    rows = certificates.set_index("index").reindex(labels.index)
    return (rows["radius"] >= eps) & (rows["prediction"] == labels)


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _attack_rows(
    attacks: pd.DataFrame, correct: pd.Series, eps_by_norm: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """Each attack at its eps; a minimum-norm attack (eps NaN) at every eps that is evaluated in its norm."""
    rows = []
    groups: Any = attacks.groupby(["attack", "norm", "eps"], sort=True, dropna=False)
    for (attack, norm, eps), group in groups:
        for budget in eps_by_norm.get(norm, []) if math.isnan(eps) else [eps]:
            robust = int(robust_mask(group, correct, budget).sum())
            share = _share(robust, len(correct))
            case = {"case": "average"} if attack in AVERAGE_CASE else {}
            rows.append({"attack": attack, "norm": norm, "eps": budget, "robust": robust, "accuracy": share} | case)
    return rows


def _robust_rows(
    attacks: pd.DataFrame, correct: pd.Series, eps_by_norm: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """The accuracy under all attacks together, at every eps of a norm up to the largest that was attacked."""
    rows = []
    for norm, counted in eps_by_norm.items():
        reach = largest_attacked_eps(attacks, norm)
        distance = nearest_examples(attacks, norm)["measured"].reindex(correct.index, fill_value=math.inf)
        for eps in (eps for eps in counted if eps <= reach):
            robust = int((correct & (distance > eps)).sum())
            rows.append({"norm": norm, "eps": eps, "robust": robust, "accuracy": _share(robust, len(correct))})
    return rows


def _certificate_rows(
    certificates: pd.DataFrame, labels: pd.Series, eps_by_norm: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    rows = []
    groups: Any = certificates.groupby(["certificate", "function", "guarantee", "norm"], sort=True)
    for (name, function, guarantee, norm), group in groups:
        for eps in eps_by_norm.get(norm, []):
            certified = int(certified_mask(group, labels, eps).sum())
            rows.append(
                {
                    "certificate": name,
                    "function": function,
                    "guarantee": guarantee,
                    "norm": norm,
                    "eps": eps,
                    "certified": certified,
                    "accuracy": _share(certified, len(labels)),
                }
            )
    return rows


def block_records(blocks: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the table of blocks as plain values, None if there is no number."""
    return [
        {str(key): value if isinstance(value, str) or math.isfinite(value) else None for key, value in row.items()}
        for row in blocks.to_dict(orient="records")
    ]
