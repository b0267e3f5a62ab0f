"""Which classes the attacks turn into which."""

from typing import Any

import altair as alt
import pandas as pd

from robustres.reports.figure import Figure, specification
from robustres.reports.formats import eps_text, norm_text
from robustres.reports.records import records
from robustres.reports.run import Run

MOST_CLASSES = 20


def confusion_figures(run: Run, samples: pd.DataFrame) -> list[Figure]:
    """One figure per attacked norm, at the eps to which the sentences refer."""
    figures = []
    for norm in run.norms:
        eps = run.headline_eps(norm)
        if eps is not None and len(samples) and eps <= run.attacked_up_to(norm):
            figures.append(_figure(run, samples, norm, eps))
    return figures


def confusion(run: Run, samples: pd.DataFrame, norm: str, eps: float) -> pd.DataFrame:
    """Counts of (label, prediction): the prediction on the nearest example within eps, or else on the clean image."""
    broken = samples["correct"] & (samples[f"distance_{norm}"] <= eps)
    answer = samples["prediction"].where(~broken, samples[f"answer_{norm}"])
    counts = pd.DataFrame({"label": samples["label"], "answer": answer}).value_counts().rename("count").reset_index()
    totals = samples["label"].value_counts()
    names = run.class_names
    return counts.assign(
        label_name=[names[label] for label in counts["label"]],
        answer_name=[names[label] for label in counts["answer"]],
        share=counts["count"] / totals.reindex(counts["label"]).to_numpy(),
    ).sort_values(["label", "answer"], ignore_index=True)


def _figure(run: Run, samples: pd.DataFrame, norm: str, eps: float) -> Figure:
    table = confusion(run, samples, norm, eps)
    wrong = table[table["label"] != table["answer"]]
    partly = ""
    if len(run.class_names) > MOST_CLASSES:
        worst = wrong.groupby("label")["count"].sum().nlargest(MOST_CLASSES).index
        table = table[table["label"].isin(worst) & table["answer"].isin(worst)]
        partly = f" Only the {MOST_CLASSES} of {len(run.class_names)} classes that are broken most often are shown."
    common = wrong.nlargest(3, "count")
    words = [f"{row['label_name']} as {row['answer_name']}: {row['count']}" for row in records(common)]
    return Figure(
        name=f"confusion-{norm}",
        title=f"Confusion under {norm_text(norm)} attack at eps = {eps_text(eps)}",
        caption=(
            f"{run.about}. Images of each class (row) by the class they are answered as (column), on the nearest "
            "adversarial example within eps, or on the clean image where none was found. The stronger the colour, the "
            f"larger the share of its row.{partly}"
        ),
        alt=f"Confusion matrix under attack. Most common errors: {'; '.join(words) or 'none'}.",
        spec=specification(_chart(records(table))),
        rows=records(table),
        shares=("share",),
        group="confusion",
    )


def _chart(rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    angle = 0 if all(len(row["answer_name"]) < 4 for row in rows) else -45
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "answer_name:N",
            title="answer",
            sort=alt.SortField("answer"),
            axis=alt.Axis(labelLimit=90, labelAngle=angle),
        ),
        y=alt.Y("label_name:N", title="label", sort=alt.SortField("label"), axis=alt.Axis(labelLimit=120)),
        tooltip=[
            alt.Tooltip("label_name:N", title="label"),
            alt.Tooltip("answer_name:N", title="answer"),
            alt.Tooltip("count:Q"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    right = "datum.label === datum.answer"
    colour = alt.condition(right, alt.value("#0f8a78"), alt.value("#c2501c"))
    cells = base.mark_rect().encode(
        color=colour,
        opacity=alt.Opacity("share:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0.04, 1]), legend=None),
    )
    numbers = base.mark_text(fontSize=10).encode(text="count:Q")
    return alt.layer(cells, numbers).properties(width=460, height=26 * len({row["label"] for row in rows}))
