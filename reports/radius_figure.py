"""Certified radii class by class."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from robustres.reports.figure import CERTIFIED, CLEAN, Figure, specification
from robustres.reports.formats import eps_text, norm_text, radius_text
from robustres.reports.records import records
from robustres.reports.run import Run
from robustres.results import of_network

MOST_CLASSES = 25
# An evaluated eps is drawn up to this multiple of the largest radius shown, so that radii stay visible.
WITHIN = 1.5
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


def radius_figures(run: Run, samples: pd.DataFrame) -> list[Figure]:
    """One figure per norm with certified radii."""
    return [
        _figure(run, samples, norm)
        for norm in run.norms
        if len(samples) and (of_network(run.tables["certificates"])["norm"] == norm).any()
    ]


def radius_by_class(run: Run, samples: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Quantiles of the radii (0 for misclassified images) per class, and the share above 0."""
    counted = samples[f"radius_{norm}"].where(samples["correct"], 0.0)
    groups = counted.groupby(samples["label"])
    table = groups.quantile(np.array(list(QUANTILES.values()))).unstack()
    table.columns = pd.Index(list(QUANTILES))
    names = run.class_names
    return table.assign(
        name=[names[label] for label in table.index],
        samples=groups.size(),
        certified=(counted > 0).groupby(samples["label"]).mean(),
    ).reset_index(names="label")


def _figure(run: Run, samples: pd.DataFrame, norm: str) -> Figure:
    table = radius_by_class(run, samples, norm)
    shown = table.nsmallest(MOST_CLASSES, "median").sort_values("label") if len(table) > MOST_CLASSES else table
    rows = records(shown)
    partly = (
        f" Only the {MOST_CLASSES} of {len(table)} classes with the smallest medians are shown."
        if shown is not table
        else ""
    )
    near = [eps for eps in run.eps[norm] if eps <= WITHIN * max(row["p95"] for row in rows)]
    beyond = " The evaluated eps lie beyond this axis." if run.eps[norm] and not near else ""
    weakest = min(rows, key=lambda row: row["median"])
    return Figure(
        name=f"radii-{norm}",
        title=f"Certified {norm_text(norm)} radius by class",
        caption=(
            f"{run.about}. Dot: median; bar: middle half; line: 5th to 95th percentile; dashed: the evaluated eps. A "
            f"misclassified image has radius 0. Every radius is a lower bound on the true one.{beyond}{partly}"
        ),
        alt=(
            f"Certified {norm_text(norm)} radii of {len(rows)} classes. Smallest median: {weakest['name']}, "
            f"{radius_text(weakest['median'])}. Evaluated eps: {', '.join(map(eps_text, run.eps[norm])) or 'none'}."
        ),
        spec=specification(_chart(rows, near, norm)),
        rows=rows,
        shares=("certified",),
        group="radii",
    )


def _chart(rows: list[dict[str, Any]], counted: list[float], norm: str) -> alt.TopLevelMixin:
    base = alt.Chart(alt.InlineData(values=rows))
    y = alt.Y("name:N", title=None, sort=alt.SortField("label"), axis=alt.Axis(labelLimit=150))
    axis = alt.Axis(format=".3~g", labelFlush=False)
    title = f"certified radius ({norm_text(norm)}, pixels in [0, 1])"
    tooltip = [alt.Tooltip("name:N", title="class"), alt.Tooltip("samples:Q")]
    tooltip += [alt.Tooltip(f"{field}:Q", format=".4~g") for field in QUANTILES]
    tooltip.append(alt.Tooltip("certified:Q", title="share above 0", format=".1%"))

    def span(low: str, high: str, **mark: Any) -> alt.Chart:
        x = alt.X(f"{low}:Q", title=title, axis=axis)
        chart: alt.Chart = base.mark_bar(color=CERTIFIED, **mark).encode(
            x=x, x2=alt.X2(f"{high}:Q"), y=y, tooltip=tooltip
        )
        return chart

    middle = base.mark_point(filled=True, size=60, color=CERTIFIED, opacity=1, stroke="white", strokeWidth=1)
    values = alt.InlineData(values=[{"eps": eps, "text": eps_text(eps)} for eps in counted])
    rules = alt.Chart(values).mark_rule(color=CLEAN, strokeDash=[4, 3], clip=True)
    return alt.layer(
        rules.encode(x=alt.X("eps:Q", title=title, axis=axis), tooltip=[alt.Tooltip("text:N", title="eps")]),
        span("p5", "p95", height=2, opacity=0.8),
        span("p25", "p75", height=12, opacity=0.5),
        middle.encode(x=alt.X("median:Q", title=title, axis=axis), y=y, tooltip=tooltip),
    ).properties(width=460, height=24 * len(rows))
