"""The sandwich figure: certified and attacked accuracy against eps, and the gap in which the truth lies."""

from typing import Any, Literal

import altair as alt
import pandas as pd

from robustres.reports.eps_axis import ScaleType, eps_axis
from robustres.reports.figure import ATTACKED, CERTIFIED, CLEAN, Figure, specification, tooltip_texts
from robustres.reports.formats import eps_text, norm_text, share_as, share_text
from robustres.reports.records import records
from robustres.reports.run import Run
from robustres.reports.sandwich import accuracy_curve, certified_reach

Step = Literal["linear", "step-before", "step-after"]

# A certified curve that ends before this share of the axis gets a separate figure.
CLOSE = 0.2
SIDES = {"certified": "certificate", "attacked": "attack"}
SERIES = {"clean": "clean", "attacked": "attacked (upper bound)", "certified": "certified (lower bound)"}


def sandwich_figures(run: Run, samples: pd.DataFrame) -> list[Figure]:
    """For each norm one figure, and a close-up if the certified curve ends far before the attacked one."""
    figures = []
    for norm in run.norms if len(samples) else []:
        whole = _figure(run, samples, norm)
        figures.append(whole)
        reach = certified_reach(samples, norm)
        if 0 < reach < CLOSE * whole.rows[-1]["eps"]:
            figures.append(_figure(run, samples, norm, end=1.2 * reach))
    return figures


def _figure(run: Run, samples: pd.DataFrame, norm: str, *, end: float | None = None) -> Figure:
    curve = accuracy_curve(run, samples, norm, end=end)
    rows = records(curve)
    close = end is not None
    log = None if close else records(accuracy_curve(run, samples, norm, logarithmic=True))
    where = ", at the scale of the certificate" if close else ""
    return Figure(
        name=f"sandwich-{norm}-close" if close else f"sandwich-{norm}",
        title=f"Accuracy against {norm_text(norm)} perturbations{where}",
        caption=f"{run.about}, {norm_text(norm)}. {_reading(run, curve, norm)}",
        alt=f"Accuracy against eps in {norm_text(norm)}{where}. {_in_words(run, rows, norm)}",
        spec=specification(_chart(rows, norm, "linear")),
        log_spec=None if log is None else specification(_chart(log, norm, "log")),
        rows=rows,
        shares=tuple(SERIES),
        group="sandwich",
    )


def _reading(run: Run, curve: pd.DataFrame, norm: str) -> str:
    """How to read the curves that the figure has."""
    reach = run.attacked_up_to(norm)
    certified = bool(curve["certified"].notna().any())
    if reach == 0:
        return (
            "No attack was run in this norm: the accuracy under the best possible attack is at or above the certified "
            "curve."
            if certified
            else "Neither attacks nor certificates were computed in this norm."
        )
    searched = (
        "The attacks searched for the nearest example at any distance."
        if reach == float("inf")
        else f"The attacks searched up to eps = {eps_text(reach)}; beyond it there is no upper bound."
    )
    if not certified:
        return (
            "The accuracy under the best possible attack is at or below the attacked curve; there is no certificate in "
            f"this norm. {searched}"
        )
    return (
        "The accuracy under the best possible attack lies in the shaded gap: at or above the certified curve, at or "
        f"below the attacked one. {searched}"
    )


def _in_words(run: Run, rows: list[dict[str, Any]], norm: str) -> str:
    by_eps = {row["eps"]: row for row in rows}
    parts = []
    for eps in run.eps[norm]:
        row = by_eps.get(eps, {"certified": None, "attacked": None})
        known = [f"{name} {share_as(row[name], kind)}" for name, kind in SIDES.items() if row[name] is not None]
        if known:
            parts.append(f"At {eps_text(eps)}: {', '.join(known)}.")
    return f"Clean accuracy {share_text(rows[0]['clean'])}. " + " ".join(parts)


def _chart(rows: list[dict[str, Any]], norm: str, scale: ScaleType) -> alt.TopLevelMixin:
    colours = alt.Scale(domain=list(SERIES.values()), range=[CLEAN, ATTACKED, CERTIFIED])
    dashes = alt.Scale(domain=list(SERIES.values()), range=[[2, 3], [7, 3], [1, 0]])
    # Steps are drawn on the safe side: certified never above, attacked never below the counted values.
    steps: dict[str, Step] = {"clean": "linear", "attacked": "step-after", "certified": "step-before"}
    known = [field for field in steps if any(row[field] is not None for row in rows)]
    named = [SERIES[field] for field in known]
    legend = alt.Legend(
        orient="bottom", title=None, symbolType="stroke", symbolStrokeWidth=3, symbolSize=400, values=named
    )
    x = eps_axis(norm, rows[0]["eps"], rows[-1]["eps"], scale)
    base = alt.Chart(alt.InlineData(values=rows))

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%"))

    def line(field: str, step: Step) -> alt.Chart:
        named = base.transform_calculate(series=f"'{SERIES[field]}'")
        mark = named.mark_line(interpolate=step, strokeWidth=2.5, clip=True)
        chart: alt.Chart = mark.encode(
            x=x,
            y=y(field),
            color=alt.Color("series:N", scale=colours, legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=legend),
        )
        return chart

    gap = (
        base.transform_calculate(low="isValid(datum.certified) ? datum.certified : 0")
        .transform_filter("isValid(datum.attacked)")
        .mark_area(color=CLEAN, opacity=0.22, clip=True)
        .encode(x=x, y=y("low"), y2=alt.Y2("attacked:Q"))
    )
    hover = alt.selection_point(
        name="hover", fields=["eps"], nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    described, texts = tooltip_texts(base, SERIES, ".1%")
    tooltip = [alt.Tooltip("eps:Q", format=".5~g"), *texts]
    rule = (
        described.mark_rule(color=CLEAN, strokeWidth=2)
        .encode(x=x, opacity=alt.when(hover).then(alt.value(0.7)).otherwise(alt.value(0)), tooltip=tooltip)
        .add_params(hover)
    )
    gaps = [gap] if "attacked" in known else []
    return alt.layer(*gaps, *(line(field, steps[field]) for field in known), rule).properties(width=460, height=300)
