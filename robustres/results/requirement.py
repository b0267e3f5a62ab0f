"""A threshold that a run must meet, for continuous integration: certified@l2:36/255>=0.5."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustres.errors import InputError
from robustres.threat import ATTACK_NORMS, parse_number

_FORM = re.compile(r"\s*(?P<what>[^@>=<]+?)\s*(?:@\s*(?P<norm>\w+)\s*:\s*(?P<eps>[^>=<]+?)\s*)?>=\s*(?P<share>.+?)\s*")
CERTIFIED, ROBUST, CLEAN = "certified", "robust", "clean"


@dataclass(frozen=True)
class Requirement:
    """At least `share` of all samples must be `what`.

    what: "clean" (classified correctly), "certified" (correct, and certified at eps by one certificate of the network),
        "robust" (surviving all attacks together), or the name of an attack or a certificate.
    norm, eps: None for "clean".

    >>> Requirement.read("certified@l2:36/255>=0.5")
    Requirement(what='certified', norm='l2', eps=0.1411764705882353, share=0.5)
    """

    what: str
    norm: str | None
    eps: float | None
    share: float

    @staticmethod
    def read(text: str) -> "Requirement":
        """Parse a requirement; InputError says what is wrong with it."""
        found = _FORM.fullmatch(text)
        if found is None or (found["norm"] is None) != (found["what"] == CLEAN):
            raise InputError(
                f"a requirement is WHAT@NORM:EPS>=SHARE such as certified@l2:36/255>=0.5, or clean>=0.9, got {text!r}"
            )
        percent = found["share"].endswith("%")
        share = parse_number(found["share"].rstrip("% ")) / (100 if percent else 1)
        eps = None if found["eps"] is None else parse_number(found["eps"])
        if not 0 <= share <= 1:
            raise InputError(f"the share in {text!r} must lie between 0 and 1, or be written in %")
        if found["norm"] not in (None, *ATTACK_NORMS) or (eps is not None and not (eps > 0 and math.isfinite(eps))):
            raise InputError(f"{text!r} needs a norm of {', '.join(ATTACK_NORMS)} and a positive eps")
        return Requirement(found["what"], found["norm"], eps, share)

    def met(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the summary: the requirement, the share found, and whether it suffices.

        A requirement on something that the run did not measure is not met: its share is None.
        """
        found = self._found(summary)
        return {"require": str(self), "share": found, "met": found is not None and found >= self.share}

    def _found(self, summary: Mapping[str, Any]) -> float | None:
        if self.what == CLEAN:
            return float(summary["clean"]["accuracy"])
        certificates = [row for row in summary["certificates"] if row["function"] == "network"]
        rows = {
            CERTIFIED: certificates,
            ROBUST: summary["robust"],
        }.get(
            self.what,
            [row for row in summary["attacks"] if row["attack"] == self.what]
            + [row for row in summary["certificates"] if row["certificate"] == self.what],
        )
        shares = [
            row["accuracy"] for row in rows if row["norm"] == self.norm and math.isclose(row["eps"], self.eps or 0)
        ]
        return max(shares, default=None)

    def __str__(self) -> str:
        where = "" if self.norm is None else f"@{self.norm}:{eps_words(self.eps or 0)}"
        return f"{self.what}{where}>={self.share:g}"


def eps_words(eps: float) -> str:
    """An eps as a short decimal or a fraction of 255.

    >>> eps_words(8 / 255), eps_words(0.25), eps_words(1 / 7)
    ('8/255', '0.25', '0.1429')
    """
    if float(f"{eps:.2g}") == eps:
        return f"{eps:.2g}"
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 else f"{eps:.4g}"
