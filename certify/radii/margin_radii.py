"""Radii from margins: each route certifies the whole network by itself, so the largest radius may be taken.

A route bounds the constants of the differences of two logits over all inputs. Bounds around one input only (local
bounds by propagation) are not a route but a separate `Certificate`, combined with the others by `certify_best`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.radii.pair_bounds import PairBounds
from robustres.errors import InputError
from robustres.numerics import rounded_up

Norm = Literal["l2", "linf"]
# "lipschitz": the report's bounds, and pairs of classes within a small effort. "best": all routes, and pairs of classes
# within a larger effort.
Choice = Literal["lipschitz", "best"]
SHARE: dict[Choice, float] = {"lipschitz": 0.25, "best": 15.0}  # effort for pairs over that for the whole network


MOST_CLASSES = 1000  # for which pairs are stored individually


@dataclass(frozen=True, eq=False)
class Route:
    """One way from bounds to radii.

    name: in the column `source`. pairs: for a class, bounds (classes,) on the constants of its logit minus every logit,
    in some norm of the input. shrink: a ball of radius r in the requested norm lies within the ball of radius
    shrink * r in that norm.
    """

    name: str
    pairs: Callable[[int], Tensor]
    shrink: float = 1.0

    def radii(self, logits: Tensor, charge: Tensor) -> Tensor:
        """(N,): minimum over the classes of margin / constant of the difference of logits; else 0."""
        prediction = logits.argmax(dim=1)
        radii = torch.zeros(len(logits), dtype=torch.float64)
        for label in sorted(set(prediction.tolist())):
            chosen = prediction == label
            gap = logits[chosen][:, label, None] - logits[chosen] - charge[chosen, None]
            ratio = (gap - gap.abs() * 2**-50) / self.pairs(label)
            ratio[:, label] = torch.inf
            radii[chosen] = ratio.amin(dim=1)
        finite = torch.where(torch.isfinite(logits).all(dim=1), radii, 0.0)
        shrunk: Tensor = finite / self.shrink
        return shrunk.nan_to_num(0.0, 0.0, 0.0)


def routes_of(report: LipschitzReport, norm: Norm, choice: Choice, logits: Tensor) -> list[Route]:
    """The routes to radii in `norm` for samples with these logits (N, classes), the most common first.

    The l2 ball of radius sqrt(d) r contains the linf ball of radius r, and the linf ball of radius r the l2 ball.
    """
    if choice not in ("lipschitz", "best"):
        raise InputError(f"certificate must be lipschitz or best, got {choice!r}")
    classes = logits.shape[1]
    pairs = "pairwise head" if report.head is not None else "whole network"
    shrink = rounded_up(math.sqrt(math.prod(report.input_shape)), 1) if norm == "linf" else 1.0
    routes = [Route(f"{pairs}, l2", _product(report, "l2", classes), shrink)]
    if norm == "linf" or choice == "best":
        routes.append(Route(f"{pairs}, linf row sums", _product(report, "linf", classes)))
    eliminated = _eliminated(report, choice, logits)
    if eliminated is not None:
        routes.append(Route("layers eliminated, l2", eliminated, shrink))
    return routes


def _eliminated(report: LipschitzReport, choice: Choice, logits: Tensor) -> PairBounds | None:
    """Bounds for pairs of classes by the elimination of the layers, for all pairs or for those that decide samples."""
    if report.analysis is None or (choice == "lipschitz" and report.whole.skipped) or not report.analysis.bounder.joint:
        return None
    whole, classes = report.analysis.whole, logits.shape[1]
    if classes > MOST_CLASSES:
        return None
    product = _product(report, "l2", classes)
    start = torch.stack([product(label) for label in range(classes)])
    start = torch.minimum(start, start.T)
    bounds = PairBounds(start, whole, SHARE[choice] * whole.effort)
    if not bounds.refine_all() and choice == "best":
        bounds.refine_for(logits)
    return bounds


def largest(routes: Sequence[Route], logits: Tensor, charge: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Per sample, the largest radius and the name of its route; earlier routes win ties."""
    radii = torch.stack([route.radii(logits, charge) for route in routes])
    best = radii.amax(dim=0)
    chosen = (radii == best).int().argmax(dim=0)
    return best, tuple(routes[row].name for row in chosen.tolist())


def _product(report: LipschitzReport, norm: Norm, classes: int) -> Callable[[int], Tensor]:
    """Bounds on the constant of z_label - z_j for every j, (classes,), in `norm`."""
    whole = rounded_up(math.sqrt(2) * report.l2_upper, 2) if norm == "l2" else rounded_up(2 * report.linf_upper, 1)

    def pairs(label: int) -> Tensor:
        if report.head is None:
            return torch.full((classes,), whole, dtype=torch.float64)
        body = report.head.body_l2 if norm == "l2" else report.head.body_linf
        products = report.head.pair_norms(label, norm).cpu() * body * (1 + 2**-50)
        above = torch.nextafter(products, torch.tensor(math.inf, dtype=torch.float64))  # including those that underflow
        return above.nan_to_num(math.inf).clamp_max(whole)

    return pairs
