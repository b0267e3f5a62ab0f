"""Audits of claimed Lipschitz constants from both sides: proven by a bound, refuted by a pair of inputs, or open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from robustres.arguments import require_kind, require_number
from robustres.certify.audits.claimed_constants import Claim, claims_of, without_statements
from robustres.certify.blocks.joint_bound import DEFAULT_EFFORT
from robustres.certify.bounds.lipschitz import lipschitz
from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.graph.capture import device_of, refusing_what_fails, require_shape
from robustres.certify.graph.float64_copy import evaluation_copy
from robustres.certify.lower.ascent import Search, strongest_witness
from robustres.certify.lower.jacobian import norms, scaled, unit
from robustres.certify.lower.witness import Measured, Witness
from robustres.certify.maps.linear_map import Shape
from robustres.certify.proof.bound import Bound
from robustres.errors import DefectiveBoundError, InputError, Refusal

Verdict = Literal["proven", "refuted", "open"]


@dataclass(frozen=True, eq=False)
class AuditRow:
    """The result for one claim.

    name: dotted name of the layer, "" for the whole network. claimed: its claimed l2 Lipschitz constant.
    bound: `lower` is attained by `witness` (a lower estimate), `upper` is the sound bound, infinite if an operation in
        `refused` has no rule. A module's own statement is never used as a bound.
    verdict: "proven" if `upper` is within the tolerance of the claim, "refuted" if `lower` exceeds it.
    """

    name: str
    claimed: float
    bound: Bound
    verdict: Verdict
    witness: Witness
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, eq=False)
class AuditReport:
    """The rows of an audit, in the order of the claims."""

    rows: tuple[AuditRow, ...]
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """Refuted if any claim is, proven if all are, open otherwise."""
        verdicts = {row.verdict for row in self.rows}
        if "refuted" in verdicts:
            return "refuted"
        return "proven" if verdicts == {"proven"} else "open"

    def to_frame(self) -> pd.DataFrame:
        """One row per claim: name, claimed, lower, upper, verdict, method, guarantee, refused, seconds."""
        return pd.DataFrame([_record(row) for row in self.rows])


def audit(
    model: nn.Module,
    input_shape: Shape,
    *,
    claimed: float | Mapping[str, float] | None = None,
    images: Tensor | None = None,
    restarts: int = 16,
    tolerance: float = 1e-5,
    search: Search | None = None,
    effort: float = DEFAULT_EFFORT,
    seconds: float | None = None,
    delta: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> AuditReport:
    """Recompute claimed l2 Lipschitz constants, over all inputs, of a model or of its layers in evaluation mode.

    Guaranteed: "proven" rests on a bound recomputed from the weights (under the guarantee in the row), "refuted" on a
    pair of inputs whose ratio |f(x') - f(x)| / |x' - x| in float64, minus an allowance for rounding, exceeds the claim.
    "open" means that neither was found.

    claimed: a number for the whole network, a table from layer names (as in `named_modules`; "" is the network) to
        numbers, or None to audit the statements of the model's modules (`lipschitz_bound`).
    images: (N, *input_shape), the starting points of the search; random images if omitted. For a layer, its inputs when
        the model is run on the images. restarts: number of starting points.
    tolerance: relative excess over the claim that is tolerated, since weights are rounded.
    search: effort of the search for a witness.
    effort, seconds, delta: as in `lipschitz`: the effort for joint bounds, a guide for the time of each linear map, and
        the failure probability allowed for each, None for deterministic bounds only.
    progress: called with ("claims", number decided, total), and likewise for the pieces of each claim ("blocks").
    Raises InputError for claims that are not positive numbers, concern unknown layers, or are missing.

    >>> layer = nn.Linear(3, 3)
    >>> audit(layer, (3,), claimed=1e-3).verdict, audit(layer, (3,), claimed=9.0).verdict
    ('refuted', 'proven')
    """
    require_number("tolerance", tolerance)
    require_number("restarts", restarts, least=1, whole=True)
    require_kind("search", search, Search)
    input_shape = require_shape(input_shape)
    searched, tell = search or Search(), progress or _silent
    with refusing_what_fails("auditing it"):
        module = without_statements(evaluation_copy(model))
        starts = _starts(input_shape, images, restarts, searched.seed).to(device_of(module))
        settings = {"effort": effort, "seconds": seconds, "delta": delta, "progress": partial(tell, "blocks")}
        claims, rows = claims_of(model, module, starts, claimed), list[AuditRow]()
        for claim in claims:
            tell("claims", len(rows), len(claims))
            rows.append(_audited(claim, tolerance, searched, settings))
        tell("claims", len(rows), len(claims))
    return AuditReport(tuple(rows), tolerance)


def _silent(stage: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


def _starts(shape: Shape, images: Tensor | None, restarts: int, seed: int) -> Tensor:
    """(restarts, *shape) float64: evenly spaced images, or random ones."""
    if images is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(restarts, *shape, generator=generator, dtype=torch.float64)
    if tuple(images.shape[1:]) != shape or not len(images):
        raise InputError(f"images must have the shape (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    spaced = torch.linspace(0, len(images) - 1, min(restarts, len(images))).round().long()
    return images.detach().cpu()[spaced].to(torch.float64)


def _audited(claim: Claim, tolerance: float, search: Search, settings: Mapping[str, Any]) -> AuditRow:
    """settings: of `lipschitz`."""
    start = perf_counter()
    report = lipschitz(claim.module, tuple(claim.starts.shape[1:]), lower_steps=0, refuse="record", **settings)
    witness = strongest_witness(
        Measured(claim.module, claim.starts[:1]),
        _varied(claim.starts, search),
        search=search,
        enough=report.upper * (1 - 1e-6),
    )
    if witness.ratio > report.upper:
        raise DefectiveBoundError(
            f"{claim.name or 'the network'}: the bound {report.upper:.17g} lies below the ratio {witness.ratio:.17g} "
            "that a pair of inputs attains; robustres is defective here: please report this model"
        )
    bound = Bound(witness.ratio, report.upper, _methods(report), report.guarantee, perf_counter() - start)
    return AuditRow(
        claim.name, claim.value, bound, _verdict(bound, claim.value * (1 + tolerance)), witness, report.refused
    )


def _varied(starts: Tensor, search: Search) -> Tensor:
    """The starts, and half as many random inputs of the same norm: the steepest region may be far from any image."""
    generator = torch.Generator().manual_seed(search.seed)
    half = starts[: (len(starts) + 1) // 2]
    noise = torch.randn(half.shape, generator=generator, dtype=half.dtype).to(half.device)
    return torch.cat([starts, scaled(norms(half), unit(noise))])


def _verdict(bound: Bound, allowed: float) -> Verdict:
    if bound.lower > allowed:
        return "refuted"
    return "proven" if bound.upper <= allowed else "open"


def _methods(report: LipschitzReport) -> str:
    if report.refused:
        return "none"
    return " x ".join(dict.fromkeys(row.method for row in report.blocks))


def _record(row: AuditRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "claimed": row.claimed,
        "lower": row.bound.lower,
        "upper": row.bound.upper,
        "verdict": row.verdict,
        "method": row.bound.method,
        "guarantee": str(row.bound.guarantee) if not row.refused else "none",
        "refused": "; ".join(str(refusal) for refusal in row.refused),
        "seconds": row.bound.seconds,
    }
