"""The result of a diagnosis of gradient masking: one finding per check, and a verdict in plain words."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """One check. value: a share of samples (or of gradients); suspicious: whether it indicates masked gradients."""

    check: str
    value: float
    suspicious: bool
    verdict: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one attack. suspicious_samples: (N,) bool, samples whose robustness is contradicted by a check."""

    attack: str
    norm: str
    eps: float
    findings: tuple[Finding, ...]
    suspicious_samples: Tensor

    @property
    def suspicious(self) -> bool:
        """Whether any check indicates masked gradients."""
        return any(finding.suspicious for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence for a newcomer."""
        if not self.suspicious:
            return "No sign of masked gradients: the attack's result can be taken at face value."
        reasons = ", ".join(finding.check.replace("_", " ") for finding in self.findings if finding.suspicious)
        return f"Do not trust the robust accuracy of {self.attack}: its gradients mislead it ({reasons})."

    def __str__(self) -> str:
        """The verdict and every check, marked where it indicates masked gradients."""
        lines = [f"{'!' if finding.suspicious else ' '} {finding.verdict}" for finding in self.findings]
        return "\n".join([self.verdict, *lines])

    def rows(self) -> list[dict[str, Any]]:
        """Rows of results.TABLES["diagnosis"]."""
        shared = {"attack": self.attack, "norm": self.norm, "eps": self.eps}
        return [{**shared, **vars(finding)} for finding in self.findings]
