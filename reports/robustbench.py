"""Results in the form of RobustBench's model_info entries; fields that a run cannot know are null."""

from typing import Any

from robustres.reports.run import Run


def robustbench_entries(run: Run) -> list[dict[str, Any]]:
    """One entry per norm and attacked eps, accuracies in per cent.

    `autoattack_acc` is filled in only if the attack of that name was run; `robust_acc` is the accuracy under all
    attacks together and `certified_acc` the certified accuracy (null without a certificate).
    """
    names = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
    clean = run.summary["clean"]["accuracy"]
    entries = []
    for norm in run.norms:
        counted = [row for row in run.summary["certificates"] if row["norm"] == norm]
        certified = {row["eps"]: row["accuracy"] for row in sorted(counted, key=lambda row: row["accuracy"])}
        autoattack = {
            row["eps"]: row["accuracy"]
            for row in run.summary["attacks"]
            if row["norm"] == norm and row["attack"] == "autoattack"
        }
        for row in (row for row in run.summary["robust"] if row["norm"] == norm):
            eps = row["eps"]
            entries.append(
                {
                    "name": run.name,
                    "authors": None,
                    "link": None,
                    "venue": None,
                    "dataset": run.manifest["data"].get("source"),
                    "architecture": run.manifest["model"].get("source"),
                    "additional_data": None,
                    "number_forward_passes": 1,
                    "threat_model": names.get(norm, norm),
                    "eps": eps,
                    "samples": run.total,
                    "clean_acc": _per_cent(clean),
                    "reported": None,
                    "autoattack_acc": _per_cent(autoattack.get(eps)),
                    "robust_acc": _per_cent(row["accuracy"]),
                    "certified_acc": _per_cent(certified.get(eps)),
                    "footnote": None,
                }
            )
    return entries


def _per_cent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 4)
