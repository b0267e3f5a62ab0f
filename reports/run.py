"""A run as used by the reports: its name, manifest, tables and summary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.results import RunFolder, largest_attacked_eps, summarise


@dataclass(frozen=True)
class Run:
    """One run, read completely.

    eps: for each norm of the run, main norm first, the eps at which accuracies are evaluated, ascending.
    digest: of the manifest and all parts of a finished run; None if the run is not finished.
    """

    name: str
    manifest: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    summary: dict[str, Any]
    eps: dict[str, list[float]]
    digest: str | None = None

    @property
    def norms(self) -> list[str]:
        """Norms of the run, main norm first."""
        return list(self.eps)

    @property
    def asked(self) -> list[str]:
        """The norms requested for the run, to which the sentences are restricted; all norms if the run does not record
        them.
        """
        named = (self.manifest.get("settings") or {}).get("eps")
        return [norm for norm in self.norms if not isinstance(named, dict) or norm in named]

    @property
    def about(self) -> str:
        """A description of the images, for captions."""
        source = self.manifest["data"].get("source")
        return f"{self.total:,} images of {source}" if source else f"{self.total:,} images"

    @property
    def total(self) -> int:
        """Number of samples."""
        return len(self.tables["samples"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their numbers if the run has no names."""
        names = [str(name) for name in self.manifest["data"].get("class_names") or []]
        samples = self.tables["samples"]
        largest = int(samples[["label", "prediction"]].max().max()) if len(samples) else -1
        return names + [str(number) for number in range(len(names), largest + 1)]

    def attacked_up_to(self, norm: str) -> float:
        """The largest eps that was attacked in this norm: `results.largest_attacked_eps`."""
        return largest_attacked_eps(self.tables["attacks"], norm)

    def headline_eps(self, norm: str) -> float | None:
        """The eps to which the sentences refer: the middle one of those evaluated, regardless of the results."""
        eps = self.eps[norm]
        return eps[(len(eps) - 1) // 2] if eps else None


def load_run(folder: Path, *, name: str | None = None) -> Run:
    """Read a run folder; what its manifest lacks is left empty. Raises InputError if the folder contains no run."""
    source = RunFolder(folder)
    manifest = {"model": {}, "data": {}, "lipschitz": None, "refused": [], **source.manifest()}
    tables = source.tables()
    eps = _eps_by_norm(manifest, tables)
    manifest["eps"] = eps
    title = name or manifest["model"].get("name") or manifest.get("name") or folder.resolve().name
    return Run(str(title), manifest, tables, summarise(manifest, tables), eps, source.digest())


def _eps_by_norm(manifest: dict[str, Any], tables: dict[str, pd.DataFrame]) -> dict[str, list[float]]:
    """Attacked norms come first: they are the ones that were requested."""
    named = {str(norm): set(map(float, values)) for norm, values in (manifest.get("eps") or {}).items()}
    attacked = {
        str(norm): set(map(float, group["eps"].dropna().unique())) for norm, group in tables["attacks"].groupby("norm")
    }
    norms = dict.fromkeys([*named, *attacked, *map(str, tables["certificates"]["norm"].unique())])
    order = sorted(norms, key=lambda norm: norm not in attacked)
    return {norm: sorted(named.get(norm, set()) | attacked.get(norm, set())) for norm in order}
