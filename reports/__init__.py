"""robustres.reports: turns the tables of a run into pages, figures and tables for papers."""

if __name__ == "reports":
    raise ImportError("import robustres.reports: the bare name `reports` belongs to your own project")

from robustres.reports.auditor import write_auditor_report
from robustres.reports.compare import write_comparison
from robustres.reports.eval_results import write_eval_results
from robustres.reports.trackers import to_mlflow, to_wandb
from robustres.reports.write import write_report

__all__ = ["to_mlflow", "to_wandb", "write_auditor_report", "write_comparison", "write_eval_results", "write_report"]
