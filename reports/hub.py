"""The metadata of a model card that the Hugging Face hub reads: `model-index`, from a run's accuracies."""

import json
from typing import Any

from robustres.reports.accuracies import accuracy_rows
from robustres.reports.formats import eps_text
from robustres.reports.run import Run


def front_matter(run: Run) -> str:
    """YAML between two lines of dashes, for the beginning of a model card.

    One entry of the task image-classification with one metric of the type accuracy for each row of the report's table;
    name and arguments of a metric say whether it is measured, an upper or a lower bound of the accuracy under the best
    attack. Values are per cent. The hub's format for benchmarks that it hosts, with their identifiers there, is written
    by `write_eval_results`.
    """
    metrics = [_metric(row) for row in accuracy_rows(run) if row["accuracy"] is not None]
    source = str(run.manifest["data"].get("source") or "images of the user")
    lines = ["---", "tags:", "- robustness", "- robustres"]
    if metrics:
        lines += ["model-index:", f"- name: {_scalar(run.name)}", "  results:"]
        lines += ["  - task:", "      type: image-classification"]
        lines += ["    dataset:", f"      name: {_scalar(source)}", f"      type: {_scalar(source)}"]
        lines += ["    metrics:", *(line for metric in metrics for line in metric)]
    return "\n".join([*lines, "---", ""])


def _metric(row: dict[str, Any]) -> list[str]:
    where = "" if row["norm"] is None else f" at {row['norm']} {eps_text(row['eps'])}"
    arguments = {key: row[key] for key in ("norm", "eps", "guarantee") if row[key] not in (None, "")}
    arguments |= {"side": row["side"], "samples": row["total"]}
    return [
        "    - type: accuracy",
        f"      value: {round(100 * row['accuracy'], 4)}",
        f"      name: {_scalar(row['name'] + where)}",
        "      args:",
        *(f"        {key}: {_scalar(value)}" for key, value in arguments.items()),
    ]


def _scalar(value: Any) -> str:
    """A JSON scalar, which is also valid YAML."""
    return json.dumps(value, ensure_ascii=False)
