"""The local certificates of one part of a run, kept as they are found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustres.certify import Certificate
from robustres.certify.local.local_radii import LocalRadius
from robustres.certify.local.program import Program
from robustres.certify.local.stored import certificate_bytes
from robustres.results import RunFolder


@dataclass(eq=False)
class KeptProofs:
    """folder: where they go, None where they are not kept. step: is called after each image with how many are done.

    rows: of the table "proofs", by certificate, norm and sample; it is filled.
    """

    folder: RunFolder | None
    step: Callable[[int], None]
    rows: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    done: int = 0

    def listening(self, certificates: Sequence[Certificate]) -> list[Certificate]:
        """The certificates, of which local ones tell what they find."""
        return [self._listening(one) if hasattr(one, "telling") else one for one in certificates]

    def _listening(self, certificate: Any) -> Certificate:
        def tell(index: int, found: LocalRadius, program: Program) -> None:
            self.done += 1
            self.step(self.done)
            if self.folder is None or found.certificate is None:
                return
            row = {"index": index, "certificate": certificate.name, "norm": certificate.norm, "radius": found.radius}
            row["sha256"] = self.folder.write_proof(row, certificate_bytes(found.certificate, program))
            self.rows[certificate.name, certificate.norm, index] = row

        listening: Certificate = certificate.telling(tell)
        return listening
