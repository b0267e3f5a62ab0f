"""The block ledger as a figure: for each block the interval in which its true norm lies, and the improvement over the
textbook bound.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from robustres.reports.figure import ATTACKED, CERTIFIED, CLEAN, JOINT, Figure, specification, tooltip_texts
from robustres.reports.formats import bound_text, radius_text
from robustres.reports.records import records
from robustres.reports.run import Run

SERIES = {"lower": "lower estimate", "joint": "joint bound", "textbook": "textbook bound", "upper": "bound used"}


def block_figures(run: Run, blocks: pd.DataFrame, *, domain: tuple[float, float] | None = None) -> list[Figure]:
    """One figure, or none if the run has no blocks; `domain` is the range of the axis if several figures share it."""
    columns = ["name", "kind", "lower", "joint", "textbook", "upper", "method"]
    rows = records(blocks[columns].assign(position=range(len(blocks))))
    if not any(row["upper"] for row in rows):
        return []
    words = [
        f"{row['name']}: at least {radius_text(row['lower'])} (estimate), at most {bound_text(row['upper'])}"
        for row in rows[:12]
    ]
    more = f" and {len(rows) - 12} more blocks" if len(rows) > 12 else ""
    return [
        Figure(
            name="blocks",
            title="How much each block can stretch",
            caption=(
                "Each bar extends from the lower estimate to the textbook bound, on a logarithmic scale. The true "
                "factor lies in the dark part, between the estimate and the bound used; the pale part is the "
                "improvement over the textbook bound. Radii from the product of the bounds are divided by each of them."
            ),
            alt="Lipschitz interval of each block. " + "; ".join(words) + more + ".",
            spec=specification(_chart(rows, domain)),
            rows=rows,
            group="blocks",
        )
    ]


def block_domain(ledgers: Sequence[pd.DataFrame]) -> tuple[float, float] | None:
    """The range of all numbers of several ledgers, None if there are none."""
    numbers = pd.concat([blocks[list(SERIES)] for blocks in ledgers]).to_numpy(dtype=float)
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    return (min(1.0, float(numbers.min())), max(1.0, float(numbers.max()))) if len(numbers) else None


def _chart(rows: list[dict[str, Any]], domain: tuple[float, float] | None) -> alt.TopLevelMixin:
    base, texts = tooltip_texts(alt.Chart(alt.InlineData(values=rows)), SERIES, ".4~g")
    y = alt.Y("name:N", title=None, sort=alt.SortField("position"), axis=alt.Axis(labelLimit=170))
    scale = alt.Scale(type="log", nice=False, padding=12, domain=alt.Undefined if domain is None else list(domain))
    title = "stretch at most (log scale)"
    tooltip = [alt.Tooltip("name:N", title="block"), alt.Tooltip("kind:N")]
    tooltip += [*texts, alt.Tooltip("method:N", title="bound by")]

    def x(field: str) -> alt.X:
        ticks = alt.Axis(labelOverlap="greedy", labelSeparation=4)
        return alt.X(f"{field}:Q", title=title, scale=scale, axis=ticks)

    def bar(low: str, high: str, opacity: float) -> alt.Chart:
        chart: alt.Chart = (
            base.transform_filter(f"datum.{low} > 0 && datum.{high} >= datum.{low}")
            .mark_bar(height=12, color=JOINT, opacity=opacity)
            .encode(x=x(low), x2=alt.X2(f"{high}:Q"), y=y, tooltip=tooltip)
        )
        return chart

    looks = {"textbook": (ATTACKED, "square"), "joint": (JOINT, "circle"), "upper": (CLEAN, "diamond")}
    looks["lower"] = (CERTIFIED, "triangle-right")
    shown = [field for field in looks if any(row[field] for row in rows)]
    if all(row["upper"] in (row["joint"], row["textbook"]) for row in rows):
        shown.remove("upper")
    labels = [SERIES[field] for field in shown]
    colours = alt.Scale(domain=labels, range=[looks[field][0] for field in shown])
    shapes = alt.Scale(domain=labels, range=[looks[field][1] for field in shown])
    legend = alt.Legend(orient="bottom", title=None)

    def point(field: str) -> alt.Chart:
        chart: alt.Chart = (
            base.transform_filter(f"datum.{field} > 0")
            .transform_calculate(series=f"'{SERIES[field]}'")
            .mark_point(filled=True, size=75, opacity=1)
            .encode(
                x=x(field),
                y=y,
                tooltip=tooltip,
                color=alt.Color("series:N", scale=colours, legend=legend),
                shape=alt.Shape("series:N", scale=shapes, legend=legend),
            )
        )
        return chart

    one = base.transform_aggregate(n="count()").mark_rule(color=CLEAN, strokeDash=[3, 3]).encode(x=alt.XDatum(1))
    bars = [] if "textbook" not in shown else [bar("upper", "textbook", 0.25)]
    bars += [] if "lower" not in shown else [bar("lower", "upper", 0.6)]
    return alt.layer(one, *bars, *map(point, shown)).properties(width=460, height=28 * len(rows))
