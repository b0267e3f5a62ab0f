"""Files that both a report and a comparison write: figures, JSON, and the data of the page."""

from pathlib import Path
from typing import Any

from robustres.reports.figure import Figure
from robustres.reports.records import plain
from robustres.results import json_text, write_atomically


def grouped(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Figures by section."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    return groups


def figure_data(figures: list[Figure]) -> dict[str, Any]:
    """What the page's script needs to draw the figures."""
    return {
        figure.name: {"spec": figure.spec, "alt": figure.alt} | ({"log": figure.log_spec} if figure.log_spec else {})
        for figure in figures
    }


def write_figures(folder: Path, figures: list[Figure]) -> None:
    """Write figures/NAME.svg and figures/NAME.pdf, and NAME-log if there is a logarithmic version."""
    for figure in figures:
        for name, svg, pdf in figure.papers():
            write_atomically(folder / "figures" / f"{name}.svg", svg.encode())
            write_atomically(folder / "figures" / f"{name}.pdf", pdf)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; NaN and infinity, which the JSON standard lacks, become null."""
    write_atomically(path, json_text(_finite(content)).encode())


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else plain(content)
