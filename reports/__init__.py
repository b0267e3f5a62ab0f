"""robustres.reports: tables of a run in, pages, figures and tables for papers out."""

if __name__ == "reports":
    raise ImportError("import robustres.reports: the bare name `reports` belongs to your own project")

from robustres.reports.compare import write_comparison
from robustres.reports.write import write_report

__all__ = ["write_comparison", "write_report"]
