"""The curves of several runs in one figure."""

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from robustres.reports.eps_axis import ScaleType, eps_axis
from robustres.reports.figure import MODEL_COLOURS, Figure, specification, tooltip_texts
from robustres.reports.formats import at_least, at_most, eps_text, norm_text
from robustres.reports.records import records
from robustres.reports.run import Run
from robustres.reports.sandwich import accuracy_curve

Step = Literal["linear", "step-before", "step-after"]

SIDES = {"certified": "certified (lower bound)", "attacked": "attacked (upper bound)"}


def overlay_figures(runs: Sequence[Run], samples: Sequence[pd.DataFrame]) -> list[Figure]:
    """One figure per norm that at least two runs share."""
    norms = list(dict.fromkeys(norm for run in runs for norm in run.norms))
    shared = [norm for norm in norms if sum(norm in run.eps for run in runs) > 1]
    return [_figure(runs, samples, norm) for norm in shared if any(len(frame) for frame in samples)]


def _figure(runs: Sequence[Run], samples: Sequence[pd.DataFrame], norm: str) -> Figure:
    known = [(run, frame) for run, frame in zip(runs, samples, strict=True) if norm in run.eps and len(frame)]
    curves = [accuracy_curve(run, frame, norm).assign(model=run.name) for run, frame in known]
    logs = [accuracy_curve(run, frame, norm, logarithmic=True).assign(model=run.name) for run, frame in known]
    rows = [row for curve in curves for row in records(curve)]
    names = [run.name for run in runs]
    words = []
    for (run, _), curve in zip(known, curves, strict=True):
        eps = run.headline_eps(norm)
        for row in records(curve[curve["eps"] == eps]):
            words.append(
                f"{run.name} at {eps_text(eps)}: certified {at_least(row['certified'])}, "
                f"attacked {at_most(row['attacked'])}"
            )
    return Figure(
        name=f"sandwich-{norm}",
        title=f"Accuracy against {norm_text(norm)} perturbations",
        caption=(
            f"{'; '.join(dict.fromkeys(run.about for run in runs))}, {norm_text(norm)}. Solid: certified, a lower "
            "bound. Dashed: attacked, an upper bound. The true accuracy of each model lies above its solid line and "
            "below its dashed line, as far as these are drawn."
        ),
        alt=f"Certified and attacked accuracy of {len(runs)} models. {'. '.join(words)}.",
        spec=specification(_chart(rows, names, norm, "linear")),
        log_spec=specification(_chart([row for curve in logs for row in records(curve)], names, norm, "log")),
        rows=rows,
        shares=("clean", *SIDES),
        group="sandwich",
    )


def _chart(rows: list[dict[str, Any]], names: list[str], norm: str, scale: ScaleType) -> alt.TopLevelMixin:
    base, texts = tooltip_texts(alt.Chart(alt.InlineData(values=rows)), SIDES, ".1%")
    colours = [MODEL_COLOURS[i % len(MODEL_COLOURS)] for i in range(len(names))]
    colour = alt.Color(
        "model:N",
        sort=names,
        scale=alt.Scale(domain=names, range=colours),
        legend=alt.Legend(orient="bottom", title=None),
    )
    dashes = alt.Scale(domain=list(SIDES.values()), range=[[1, 0], [6, 4]])
    every = [row["eps"] for row in rows]
    x = eps_axis(norm, min(every), max(every), scale)
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("eps:Q", format=".5~g"), *texts]

    def line(field: str, step: Step) -> alt.Chart:
        title = SIDES[field]
        named = base.transform_calculate(series=f"'{title}'")
        chart: alt.Chart = named.mark_line(interpolate=step, strokeWidth=2.3, clip=True).encode(
            x=x,
            y=alt.Y(f"{field}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")),
            color=colour,
            strokeDash=alt.StrokeDash(
                "series:N",
                scale=dashes,
                legend=alt.Legend(
                    orient="bottom", title=None, symbolType="stroke", symbolSize=400, symbolStrokeColor="#76818e"
                ),
            ),
            tooltip=tooltip,
        )
        return chart

    steps: dict[str, Step] = {"attacked": "step-after", "certified": "step-before"}
    known = [field for field in steps if any(row[field] is not None for row in rows)]
    return alt.layer(*(line(field, steps[field]) for field in known)).properties(width=460, height=320)
