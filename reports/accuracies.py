"""The table of accuracies: clean, under each attack, and certified, each with its confidence interval."""

from typing import Any

from robustres.reports.run import Run
from robustres.reports.wilson import wilson_interval
from robustres.results import AVERAGE_CASE, NETWORK

ALL_ATTACKS = "all attacks together"
MEASURED = "measured"
UPPER = "upper bound (attacks found no more)"
AVERAGE = "average case (one random corruption of this size, no attack)"
LOWER = "lower bound (certified)"


def accuracy_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of kind, name, norm, eps, side, guarantee, count, total, accuracy, low, high.

    low, high: 95 % Wilson interval for the sampling of the images. `side` says whether the accuracy under the best
        possible attack is at least or at most this number.
    """
    summary = run.summary
    rows = [_row("clean", "clean images", None, None, MEASURED, "", summary["clean"]["correct"], run.total)]
    for norm in run.norms:
        attacks = [row for row in summary["attacks"] if row["norm"] == norm]
        certificates = [row for row in summary["certificates"] if row["norm"] == norm]
        for eps in run.eps[norm]:
            for row in (row for row in attacks if row["eps"] == eps):
                side = AVERAGE if row["attack"] in AVERAGE_CASE else UPPER
                rows.append(_row("attack", row["attack"], norm, eps, side, "", row["robust"], run.total))
            for row in (row for row in summary["robust"] if (row["norm"], row["eps"]) == (norm, eps)):
                rows.append(_row("attack", ALL_ATTACKS, norm, eps, UPPER, "", row["robust"], run.total))
            for row in (row for row in certificates if row["eps"] == eps):
                of = "" if row["function"] in (NETWORK, row["certificate"]) else f" of {row['function']}"
                name = f"{row['certificate']} certificate{of}"
                guarantee, count = row["guarantee"], row["certified"]
                rows.append(_row("certificate", name, norm, eps, LOWER, guarantee, count, run.total))
    return rows


def _row(
    kind: str, name: str, norm: str | None, eps: float | None, side: str, guarantee: str, count: int, total: int
) -> dict[str, Any]:
    low, high = wilson_interval(count, total)
    return {
        "kind": kind,
        "name": name,
        "norm": norm,
        "eps": eps,
        "side": side,
        "guarantee": guarantee,
        "count": count,
        "total": total,
        "accuracy": count / total if total else None,
        "low": low,
        "high": high,
    }
