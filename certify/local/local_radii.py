"""Local certificates of a batch of images: search in float32, proof in float64."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger
from time import thread_time
from typing import Literal

import torch
from torch import Tensor, nn

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.graph.capture import Captured, capture
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.local.attempt import Attempt
from robustres.certify.local.certificate import Certificate, margins_question, proved_radius
from robustres.certify.local.changes import Multipliers
from robustres.certify.local.evidence import Evidence
from robustres.certify.local.margins import margin_rows
from robustres.certify.local.program import Program, program
from robustres.certify.local.search import Outcome, largest_radius
from robustres.errors import InputError, UnsupportedOperationError
from robustres.numerics import require_certifiable_arithmetic
from robustres.threat import Norm

log = getLogger(__name__)

# How many of the best attempts may be proved until one keeps what it promised.
PROOFS = 3
# What a search in float32 finds is proved in float64 a little inside.
INSIDE = 1 - 1e-5
# A proof that ends below its eps may end as much lower where it is repeated, since sums are rounded otherwise there.
ELSEWHERE = 1 - 1e-9
# Of the time, for the whole search, and what must be left of it for branch and bound to begin.
SEARCH, BRANCHING = 0.7, 0.3
# The same where an eps is in question: branch and bound leaves time for the proof of its parts.
AIMED = 0.85
# By when attempts with ellipsoids end, whose proofs are short.
LATEST = 0.8
# From this share of the margins that are lost, a smaller eps is the better use of the time.
HOPELESS = 1.25
# Backward rows end after this many times the seconds per image, even if nothing is proved by then.
PATIENCE = 10
# By how much a radius must exceed one that is known to be worth a search.
WORTHWHILE = 1.02
# How far beyond the best radius branch and bound tries to get.
BEYOND = 1.08
# Rows whose change is above this share of their margin are not tried again with tighter bounds.
NEARLY = 1.5


@dataclass(frozen=True, eq=False)
class LocalRadius:
    """radius: proved, in pixel units. certificate: what proves it, None where nothing is. seconds: of the search and
    of the proof."""

    radius: float
    prediction: int
    certificate: Certificate | None
    seconds: tuple[float, float]


@dataclass(frozen=True, eq=False)
class LocalAnswer:
    """answer: at the eps in question. found: the largest radius that was proved on the way, and how."""

    answer: Literal["proved", "broken", "open"]
    found: LocalRadius


def local_program(model: nn.Module, input_shape: tuple[int, ...], *, runs: torch.dtype | None = None) -> Program:
    """The network as local bounds are propagated through it; UnsupportedOperationError names what has no relaxation.

    Modules that state their own bound are followed into their operations, since a bound says nothing about values.
    runs: torch.float32 for bounds of the network as it runs in float32; None for the exact network.
    """
    return program_of(capture(model, input_shape, opened=True), runs=runs)


def program_of(captured: Captured, *, runs: torch.dtype | None = None) -> Program:
    """As `local_program`, of a graph that is captured already."""
    near = replace(captured, on_unit_domain=False, near_an_image=True)
    network, refused = build_network(near)
    if network is None:
        raise UnsupportedOperationError(refused)
    return program(near, network, runs=runs)


def local_radii(
    made: Program,
    x: Tensor,
    *,
    norm: Norm,
    above: Tensor | None = None,
    seconds: float = 5.0,
    aims: Sequence[float] = (),
    progress: Callable[[int], None] | None = None,
) -> list[LocalRadius]:
    """The largest radius that local bounds prove around each image (N, *shape).

    above: (N,) distances of adversarial examples in this norm, infinite where none is known; the search stops near
    them. seconds: for each image, a guide. aims: radii in question, in pixel units; where there are any, the time goes
    to proving the largest of them instead of any radius. progress: is called with the number of images done after each.
    Images outside [0, 1] get whole balls; others balls within [0, 1]^n.
    """
    found = []
    for one in each_local_radius(made, x, norm=norm, above=above, seconds=seconds, aims=aims):
        found.append(one)
        if progress is not None:
            progress(len(found))
    return found


def each_local_radius(
    made: Program,
    x: Tensor,
    *,
    norm: Norm,
    above: Tensor | None = None,
    known: Tensor | None = None,
    seconds: float = 5.0,
    aims: Sequence[float] = (),
) -> Iterator[LocalRadius]:
    """As `local_radii`, image by image. known: (N,) radii proved otherwise; only larger ones are looked for."""
    require_certifiable_arithmetic(made.device)
    if norm not in ("l2", "linf", "l1"):
        raise InputError(f"norm must be l2, linf or l1, got {norm!r}")
    if not all(0 < aim < math.inf for aim in aims):
        raise InputError(f"the radii to aim at must be positive and finite, got {list(aims)}")
    quick = made.to(torch.float32)
    limits = [math.inf] * len(x) if above is None else above.tolist()
    floors = [0.0] * len(x) if known is None else known.tolist()
    for image, limit, floor in zip(x.detach().to(made.device, torch.float64), limits, floors, strict=True):
        with torch.no_grad():
            found = _radius(made, quick, image, norm, limit, floor, seconds, tuple(sorted(aims)))
        yield found


def local_answers(
    made: Program,
    x: Tensor,
    *,
    norm: Norm,
    eps: float,
    above: Tensor | None = None,
    seconds: float = 5.0,
    progress: Callable[[int], None] | None = None,
) -> list[LocalAnswer]:
    """Whether each image (N, *shape) keeps its answer within eps: "proved", "broken" by a known adversarial example,
    else "open".

    above, seconds, progress: as in `local_radii`.
    """
    found = local_radii(made, x, norm=norm, above=above, seconds=seconds, aims=(eps,), progress=progress)
    limits = [math.inf] * len(x) if above is None else above.tolist()
    return [
        LocalAnswer("proved" if one.radius >= eps else "broken" if limit <= eps else "open", one)
        for one, limit in zip(found, limits, strict=True)
    ]


def _radius(
    made: Program,
    quick: Program,
    image: Tensor,
    norm: Norm,
    limit: float,
    floor: float,
    seconds: float,
    aims: tuple[float, ...],
) -> LocalRadius:
    begun = thread_time()
    logits = made.values(image[None])[-1][0]
    label = int(logits.argmax())
    margin = float(_margins(made, logits, label).min())
    if not bool(torch.isfinite(logits).all()) or not limit > 0 or not margin > 0:
        return LocalRadius(0.0, label, None, (0.0, 0.0))
    if (floor >= aims[-1]) if aims else (floor * WORTHWHILE >= limit):
        return LocalRadius(0.0, label, None, (0.0, 0.0))
    trial = _Trial(
        made, quick, image, label, norm, begun + seconds * (AIMED if aims else SEARCH), begun + seconds * PATIENCE
    )
    if aims:
        return _aimed(trial, limit, tuple(aim for aim in aims if aim > floor), begun)
    start = max(_first_eps(made, image, label, norm), floor * WORTHWHILE)
    attempt = trial.linear if norm == "l1" or made.runs is not None else trial.quadratic
    deadline = begun + seconds * LATEST if norm == "l2" else trial.deadline
    found = largest_radius(attempt, start=start, limit=limit, deadline=deadline)
    best = max(one.radius for one in found)
    if not best and thread_time() > trial.last:
        log.warning(
            "linear bounds around an image were given up after %.0f seconds; give each image more time "
            "(--seconds-per-image) or use a GPU",
            PATIENCE * seconds,
        )
    each = (thread_time() - begun) / len(found)
    if trial.left() > max(BRANCHING * seconds, 3 * each) and 0 < best < 0.98 * limit:
        found.append(trial.branch(min(BEYOND * best, limit)))
    searched = thread_time()
    radius, chosen = 0.0, None
    for one in sorted(found, key=lambda one: -one.radius)[:PROOFS]:  # the best may prove less than it promised
        if radius >= one.radius * INSIDE:
            break
        # Within a smaller ball the same multipliers lose a smaller share, so some of the way back is enough.
        eps = INSIDE * (math.sqrt(one.radius * one.eps) if norm == "l2" and one.quadratic else one.radius)
        certificate = Certificate(image, label, norm, eps, trial.evidence.get(one.eps, Evidence()))
        proved = _proved(made, certificate)
        if proved > radius:
            radius, chosen = proved, certificate
    return LocalRadius(radius, label, chosen, (searched - begun, thread_time() - searched))


def _proved(made: Program, certificate: Certificate) -> float:
    """The radius to state: one that a repeated proof can reach, too."""
    radius = proved_radius(made, certificate)
    return radius if radius >= certificate.eps else radius * ELSEWHERE


def _aimed(trial: "_Trial", limit: float, aims: tuple[float, ...], begun: float) -> LocalRadius:
    """The largest of the radii in question that is proved; where none is, what linear bounds prove on the way."""
    radius, chosen, proving = 0.0, None, 0.0
    for aim in aims:
        if not aim < limit or (chosen is not None and trial.left() <= 0):
            break
        outcome = trial.branch(aim)
        started = thread_time()
        certificate = Certificate(trial.image, trial.label, trial.norm, aim, trial.evidence.get(aim, Evidence()))
        proved = _proved(trial.made, certificate) if outcome.radius > radius else 0.0
        proving += thread_time() - started
        trial.deadline += thread_time() - started
        if proved > radius:
            radius, chosen = proved, certificate
        if proved < aim:
            break
    return LocalRadius(radius, trial.label, chosen, (thread_time() - begun - proving, proving))


@dataclass(eq=False)
class _Trial:
    """Attempts to prove one image at one eps, in float32; `evidence`: by eps what proves more than linear bounds do."""

    made: Program
    quick: Program
    image: Tensor
    label: int
    norm: Norm
    deadline: float
    last: float
    evidence: dict[float, Evidence] = field(default_factory=dict)
    starts: dict[tuple[int, ...], FixedPoint] = field(default_factory=dict)
    ellipsoids: Mapping[int, Multipliers] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds of the search."""
        return self.deadline - thread_time()

    def attempt(self, eps: float) -> Attempt:
        """With linear bounds done, in l2 with ellipsoids around the image, too."""
        question = margins_question(self.image, self.label, self.made.steps[-1].shape[0], self.norm, eps)
        made = Attempt(
            self.made,
            self.quick,
            question,
            self.left,
            self.starts,
            ellipsoids=self.ellipsoids,
            rows_left=lambda: self.last - thread_time(),
        )
        if self.norm != "l2":
            made.linear()
            return made
        made.narrowed()
        self.ellipsoids = made.ellipsoids
        return made

    def linear(self, eps: float) -> Outcome:
        """Backward propagation with the common lines."""
        return _outcome(eps, self.attempt(eps))

    def quadratic(self, eps: float) -> Outcome:
        """The same, and quadratic certificates for the classes that it leaves open."""
        made = self.attempt(eps)
        if not made.shared or made.radii.min() * HOPELESS >= eps:
            made.quadratic(give_up=HOPELESS)
        self.evidence[eps] = made.evidence
        return _outcome(eps, made)

    def branch(self, eps: float) -> Outcome:
        """All methods."""
        made = self.attempt(eps)
        everything(made)
        self.evidence[eps] = made.evidence
        return _outcome(eps, made)


def _outcome(eps: float, made: Attempt) -> Outcome:
    lost = 1 - made.least / made.margins.clamp_min(1e-300)
    radius = eps if not made.open else float(made.radii.min())
    return Outcome(eps, float(lost.max()), radius, quadratic=bool(made.points) or made.shared)


def everything(made: Attempt) -> None:
    """What an attempt with linear bounds can still do, until its time is over."""
    if made.open:
        made.quadratic()
    if made.open and made.left() > 0:
        made.sharpen()
        made.quadratic(most=NEARLY)
    if made.open and made.left() > 0:
        made.branch()


def _margins(made: Program, logits: Tensor, label: int) -> Tensor:
    weights, _ = margin_rows(torch.tensor([label], device=made.device), len(logits), logits.dtype)
    return weights @ logits


def _first_eps(made: Program, image: Tensor, label: int, norm: Norm) -> float:
    """A share of the radius at which the linearised network would change its answer."""
    order, share = {"l2": (2.0, 0.21), "linf": (1.0, 0.4), "l1": (math.inf, 0.1)}[norm]
    with torch.enable_grad():
        x = image[None].clone().requires_grad_()
        margins = _margins(made, made.values(x)[-1][0], label)
        slopes = [
            torch.linalg.vector_norm(torch.autograd.grad(margin, x, retain_graph=True)[0], ord=order)
            for margin in margins
        ]
    ratios = margins.detach() / torch.stack(slopes).clamp_min(1e-12)
    return share * float(ratios.nan_to_num(1.0).min().clamp(1e-6, 1e3))
