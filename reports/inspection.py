"""The page of an inspection: claims with their findings, figures and tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.reports.figure import Figure
from robustres.reports.files import figure_data, write_figures, write_json
from robustres.reports.formats import number_text
from robustres.reports.records import records
from robustres.reports.render import page_assets, render
from robustres.results import csv_text, require_own, write_atomically


@dataclass(frozen=True, eq=False)
class Section:
    """One claim as shown on the page.

    findings: one row per number with the columns what, value, side, relation, limit, against, holds.
    frame: all the underlying numbers. chart: Vega-Lite without a theme. skipped: why there is nothing to show, or "".
    """

    name: str
    title: str
    statement: str = ""
    source: str = ""
    caption: str = ""
    findings: tuple[dict[str, Any], ...] = ()
    frame: pd.DataFrame | None = None
    chart: dict[str, Any] | None = None
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """Whether every finding holds."""
        return all(finding["holds"] for finding in self.findings)

    @property
    def broken(self) -> str:
        """A description of what does not hold; empty if everything does."""
        return "; ".join(
            f"{finding['what']} is {number_text(finding['value'])}, not "
            f"{'at most' if finding['relation'] == '<=' else 'at least'} "
            f"{number_text(finding['limit'])} ({finding['against']})"
            for finding in self.findings
            if not finding["holds"]
        )

    @property
    def figure(self) -> Figure | None:
        """The figure, if there is one."""
        if self.chart is None:
            return None
        told = "; ".join(f"{finding['what']}: {finding['value']:.4g}" for finding in self.findings)
        return Figure(self.name, self.title, self.caption, f"{self.title}. {told}.", self.chart, [], self.name)


def write_inspection(folder: Path, subject: str, sections: list[Section]) -> Path:
    """Write inspect.html (self-contained), inspect.md, inspect.json, NAME.csv and figures/; returns inspect.html.

    subject: a description of what was inspected.
    """
    require_own(
        folder, ("inspect.html", "inspect.md", "inspect.json", "figures"), marker="inspect.json", entry="claims"
    )
    figures = [figure for section in sections if (figure := section.figure) is not None]
    values: dict[str, Any] = {"subject": subject, "sections": sections}
    write_figures(folder, figures)
    for section in sections:
        if section.frame is not None:
            write_atomically(folder / f"{section.name}.csv", csv_text(section.frame).encode())
    content = [
        {"claim": section.name, "title": section.title, "holds": section.holds, "skipped": section.skipped,
         "findings": records(pd.DataFrame(list(section.findings)))}
        for section in sections
    ]  # fmt: skip
    write_json(folder / "inspect.json", {"subject": subject, "claims": content})
    write_atomically(folder / "inspect.md", render("inspect.md", **values).encode())
    page = {"figures": figure_data(figures)}
    html = render("inspect.html", page=page, assets=page_assets(), **values)
    write_atomically(folder / "inspect.html", html.encode())
    return folder / "inspect.html"
