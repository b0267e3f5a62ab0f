"""Charts of the laboratory: Vega-Lite specifications without a theme, which the page or the paper provides."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

# Distinguishable with colour vision deficiencies; the first two are always "plain" and "residual".
COLOURS = ("#d9622b", "#2f6fb3", "#0f8a78", "#b0569b", "#b58900", "#5b8c2a", "#8a6fd1", "#76818e")
GREY = "#76818e"
DASHES = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3], [10, 2], [3, 1])


def rows(frame: pd.DataFrame) -> alt.InlineData:
    """The frame as inline data of a chart; numbers that JSON cannot represent become null."""
    clean = frame.astype(object).where(frame.notna() & ~frame.isin([float("inf"), float("-inf")]), None)
    return alt.InlineData(values=[{str(k): _plain(v) for k, v in row.items()} for row in clean.to_dict("records")])


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    series: str,
    *,
    order: Sequence[str],
    x_title: str,
    y_title: str,
    x_log: bool = False,
    y_log: bool = False,
    y_format: str | None = None,
    points: bool = True,
    width: int = 460,
    height: int = 260,
) -> Any:
    """One line per series, distinguished by colour and by dashes."""
    legend = alt.Legend(orient="bottom", title=None, columns=3, symbolType="stroke", symbolSize=300, labelLimit=260)
    shown = frame[frame[y] > 0] if y_log else frame
    axis = alt.Axis(format=y_format) if y_format else alt.Axis()
    whole = not x_log and bool((shown[x] % 1 == 0).all())
    x_axis = _whole_axis(shown[x]) if whole else alt.Axis()
    power = alt.Axis(format=".0e", tickCount=6) if y_log and not y_format else axis
    return (
        alt.Chart(rows(shown))
        .mark_line(point={"size": 28} if points else False, strokeWidth=2.2)
        .encode(
            x=alt.X(
                f"{x}:Q", title=x_title, axis=x_axis, scale=alt.Scale(type="log" if x_log else "linear", zero=False)
            ),
            y=alt.Y(f"{y}:Q", title=y_title, axis=power, scale=alt.Scale(type="log" if y_log else "linear")),
            color=alt.Color(
                f"{series}:N", scale=alt.Scale(domain=list(order), range=_cycle(COLOURS, order)), legend=legend
            ),
            strokeDash=alt.StrokeDash(
                f"{series}:N", scale=alt.Scale(domain=list(order), range=_cycle(DASHES, order)), legend=legend
            ),
            tooltip=[f"{series}:N", f"{x}:Q", alt.Tooltip(f"{y}:Q", format=".4~g")],
        )
        .properties(width=width, height=height)
    )


def _whole_axis(numbers: "pd.Series[Any]") -> alt.Axis:
    """Ticks at whole numbers only, at each of them if there are few."""
    few = sorted({int(number) for number in numbers})
    return alt.Axis(values=few, format="d") if len(few) <= 12 else alt.Axis(tickMinStep=1, format="d")


def horizontal(value: float) -> Any:
    """A dashed line across the chart."""
    return (
        alt.Chart(alt.InlineData(values=[{"level": value}]))
        .mark_rule(color=GREY, strokeDash=[3, 3])
        .encode(y="level:Q")
    )


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as Vega-Lite without a theme."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return spec


def _cycle(values: Sequence[Any], order: Sequence[str]) -> list[Any]:
    return [values[position % len(values)] for position in range(len(order))]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
