"""The training curves, if the run's network was trained by robustres."""

from typing import Any

import altair as alt

from robustres.reports.figure import CERTIFIED, CLEAN, JOINT, Figure, specification, tooltip_texts
from robustres.reports.formats import number_text, share_text
from robustres.reports.records import records
from robustres.reports.run import Run

SERIES = {"clean": "clean", "certified": "certified (estimate in training)"}


def training_figures(run: Run) -> list[Figure]:
    """Accuracies and loss by epoch; none if the run contains no training history."""
    table = run.tables["training"].sort_values("epoch")
    if len(table) < 2:
        return []
    rows = records(table)
    last = rows[-1]
    return [
        Figure(
            name="training-accuracy",
            title="Accuracy during training",
            caption="On the images used to monitor training, not on the test images of the other figures. "
            "Certified is the estimate used during training, with norms from power iteration: it guarantees nothing.",
            alt=(
                f"After epoch {last['epoch']}: clean {share_text(last['clean'])}, "
                f"estimated certified {share_text(last['certified'])}."
            ),
            spec=specification(_accuracy(rows)),
            rows=rows,
            shares=tuple(SERIES),
            group="training",
        ),
        Figure(
            name="training-loss",
            title="Loss during training",
            caption="Mean training loss of each epoch.",
            alt=f"Loss from {number_text(rows[0]['loss'])} to {number_text(last['loss'])}.",
            spec=specification(_loss(rows)),
            rows=rows,
            group="training",
        ),
    ]


def _accuracy(rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    base, texts = tooltip_texts(alt.Chart(alt.InlineData(values=rows)), SERIES, ".1%")
    scale = alt.Scale(domain=list(SERIES.values()), range=[CLEAN, CERTIFIED])
    dashes = alt.Scale(domain=list(SERIES.values()), range=[[2, 3], [1, 0]])
    legend = alt.Legend(orient="bottom", title=None, symbolType="stroke", symbolSize=400)
    tooltip = [alt.Tooltip("epoch:Q"), *texts]

    def line(field: str) -> alt.Chart:
        named = base.transform_calculate(series=f"'{SERIES[field]}'")
        chart: alt.Chart = named.mark_line(strokeWidth=2.5, point={"size": 25}).encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(f"{field}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")),
            color=alt.Color("series:N", scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=legend),
            tooltip=tooltip,
        )
        return chart

    known = [field for field in SERIES if any(row[field] is not None for row in rows)]
    return alt.layer(*map(line, known)).properties(width=460, height=220)


def _loss(rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    base = alt.Chart(alt.InlineData(values=rows)).mark_line(color=JOINT, strokeWidth=2.5, point={"size": 25})
    chart: alt.Chart = base.encode(
        x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y("loss:Q", title="loss"),
        tooltip=["epoch:Q", alt.Tooltip("loss:Q", format=".4~g")],
    ).properties(width=460, height=220)
    return chart
