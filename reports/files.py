"""What a report and a comparison write alike: figures, JSON, and the data of the page."""

import json
from pathlib import Path
from typing import Any

from robustres.reports.figure import Figure
from robustres.results import write_atomically


def grouped(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Figures by the section in which they stand."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    return groups


def figure_data(figures: list[Figure]) -> dict[str, Any]:
    """What the page's script needs to draw them."""
    return {figure.name: {"spec": figure.spec, "alt": figure.alt} for figure in figures}


def write_figures(folder: Path, figures: list[Figure]) -> None:
    """figures/NAME.svg and figures/NAME.pdf."""
    for figure in figures:
        write_atomically(folder / "figures" / f"{figure.name}.svg", figure.svg.encode())
        write_atomically(folder / "figures" / f"{figure.name}.pdf", figure.pdf())


def write_json(path: Path, content: Any) -> None:
    """JSON without NaN or infinity, which its standard does not know."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
