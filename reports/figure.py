"""A figure: one Vega-Lite specification that serves the page (interactive) and papers (SVG, PDF)."""

import base64
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import altair as alt
import vl_convert

from robustres.errors import InputError

# One colour for each side of the sandwich, readable on white and on black and distinguishable for colour-blind readers.
CERTIFIED = "#0f8a78"
ATTACKED = "#d9622b"
CLEAN = "#76818e"
JOINT = "#2f6fb3"
MODEL_COLOURS = ("#2f6fb3", "#d9622b", "#0f8a78", "#b0569b", "#b58900", "#5b8c2a", "#8a6fd1", "#76818e")

PAPER_CONFIG: dict[str, Any] = {
    "background": "white",
    "aria": False,
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e6e8eb", "domainColor": "#8a929c", "tickColor": "#8a929c", "labelFontSize": 11},
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelFontSize": 11,
        "labelLimit": 320,
        "columnPadding": 36,  # places are fixed here, and a reader's machine may have no font as narrow as these
        "layout": {"bottom": {"anchor": "start", "direction": "vertical"}},
    },
}


@dataclass(frozen=True)
class Figure:
    """name: of its files; title, caption, alt: text for people; spec: Vega-Lite; rows: the numbers it shows.

    group: figures of one group are placed side by side on the page. log_spec: the same with a logarithmic eps axis, if
        there is one. shares: the columns of `rows` that are shares.
    """

    name: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    group: str
    log_spec: dict[str, Any] | None = None
    shares: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", self.name):
            raise InputError(f"a figure's name may only contain letters, digits and -, got {self.name!r}")

    @cached_property
    def svg(self) -> str:
        """Vector graphic for papers, and for the page if scripts are disabled."""
        return str(vl_convert.vegalite_to_svg(self._paper_spec()))

    @property
    def svg_uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()

    def papers(self) -> Iterator[tuple[str, str, bytes]]:
        """Name, SVG and PDF (one page) of each version."""
        yield self.name, self.svg, bytes(vl_convert.vegalite_to_pdf(self._paper_spec()))
        if self.log_spec is not None:
            logarithmic = replace(self, name=f"{self.name}-log", spec=self.log_spec, log_spec=None)
            yield from logarithmic.papers()

    def _paper_spec(self) -> dict[str, Any]:
        """The specification without interactive elements."""
        spec = copy.deepcopy(self.spec)
        hidden = {view for parameter in spec.pop("params", []) for view in parameter.get("views", [])}
        if hidden:
            spec["layer"] = [layer for layer in spec["layer"] if layer.get("name") not in hidden]
        spec["config"] = PAPER_CONFIG
        return spec


def tooltip_texts(chart: alt.Chart, titles: Mapping[str, str], form: str) -> tuple[alt.Chart, list[alt.Tooltip]]:
    """The chart with a text for each field, shown in tooltips: a missing number is shown as unknown, not as 0."""
    texts = {
        f"{field}_text": f"isValid(datum.{field}) ? format(datum.{field}, '{form}') : 'unknown'" for field in titles
    }
    described: alt.Chart = chart.transform_calculate(**texts)
    return described, [alt.Tooltip(f"{field}_text:N", title=title) for field, title in titles.items()]


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as Vega-Lite without a theme: the page and the paper each add their own."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return spec
