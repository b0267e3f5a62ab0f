"""Local certificates of a batch of images: search in float32, proof in float64."""

import math
from dataclasses import dataclass, field
from time import thread_time

import torch
from torch import Tensor, nn

from robustres.certify.graph.capture import capture
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.local.backward import Form, Rows, pulled_back
from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.intermediate import Bounds, bounded
from robustres.certify.local.margins import margin_rows, positive_within
from robustres.certify.local.program import Program, program
from robustres.certify.local.quadratic import Quadratic, searched, sectors
from robustres.certify.local.search import Attempt, largest_radius
from robustres.certify.local.sets import Region
from robustres.errors import InputError, UnsupportedOperationError
from robustres.numerics import require_certifiable_arithmetic
from robustres.threat import Norm

# What a search in float32 finds is proved in float64 a little inside.
INSIDE = 1 - 1e-5
# A quadratic certificate proves about a thousandth more change than its search reached.
SHARE = 1.002


@dataclass(frozen=True, eq=False)
class LocalRadius:
    """radius: proved, in pixel units. certificate: what proves it, None where nothing is. seconds: of the search and
    of the proof."""

    radius: float
    prediction: int
    certificate: Certificate | None
    seconds: tuple[float, float]


def local_program(model: nn.Module, input_shape: tuple[int, ...]) -> Program:
    """The network as local bounds are propagated through it; UnsupportedOperationError names what has no relaxation."""
    captured = capture(model, input_shape)
    network, refused = build_network(captured)
    if network is None:
        raise UnsupportedOperationError(refused)
    return program(captured, network)


def local_radii(
    made: Program,
    x: Tensor,
    *,
    norm: Norm,
    above: Tensor | None = None,
    seconds: float = 5.0,
) -> list[LocalRadius]:
    """The largest radius that local bounds prove around each image (N, *shape).

    above: (N,) distances of adversarial examples in this norm, infinite where none is known; the search stops near
    them. seconds: for each image, a guide. Images outside [0, 1] get whole balls; others balls within [0, 1]^n.
    """
    require_certifiable_arithmetic(made.device)
    if norm not in ("l2", "linf", "l1"):
        raise InputError(f"norm must be l2, linf or l1, got {norm!r}")
    quick = made.to(torch.float32)
    limits = [math.inf] * len(x) if above is None else above.tolist()
    with torch.no_grad():
        return [
            _radius(made, quick, image, norm, limit, seconds)
            for image, limit in zip(x.detach().to(made.device, torch.float64), limits, strict=True)
        ]


def _radius(made: Program, quick: Program, image: Tensor, norm: Norm, limit: float, seconds: float) -> LocalRadius:
    begun = thread_time()
    logits = made.values(image[None])[-1][0]
    label = int(logits.argmax())
    margin = float(_margins(made, logits, label).min())
    if not bool(torch.isfinite(logits).all()) or not limit > 0 or not margin > 0:
        return LocalRadius(0.0, label, None, (0.0, 0.0))
    trial = _Trial(made, quick, image, label, norm, begun + seconds / 2)
    first = largest_radius(
        trial.linear,
        margin=margin,
        start=_first_eps(made, image, label, norm),
        limit=limit,
        deadline=begun + seconds / 3,
    )
    certificates = [Certificate(image, label, norm, first.radius * INSIDE)]
    if norm != "l1" and first.radius < 0.98 * limit and thread_time() < begun + seconds / 2:
        found = largest_radius(
            trial.quadratic,
            margin=margin,
            start=max(1.3 * first.radius, 1e-9),
            limit=limit,
            tolerance=0.05,
            deadline=trial.deadline,
        )
        if found.radius > first.radius:
            certificates.insert(0, Certificate(image, label, norm, found.radius * INSIDE, trial.found[found.eps]))
    searched = thread_time()
    best, chosen = 0.0, None
    for certificate in certificates:  # what was found at a larger eps first; it may prove less than it promised
        if best >= certificate.eps:
            break
        radius = proved_radius(made, certificate)
        if radius > best:
            best, chosen = radius, certificate
    return LocalRadius(best, label, chosen, (searched - begun, thread_time() - searched))


@dataclass(eq=False)
class _Trial:
    """Attempts to prove one image at one eps, in float32; `found`: by eps the multipliers that did it.

    deadline: when the search for multipliers ends, since proving them takes about as long again.
    """

    made: Program
    quick: Program
    image: Tensor
    label: int
    norm: Norm
    deadline: float
    found: dict[float, dict[int, Quadratic]] = field(default_factory=dict)
    last: dict[int, Quadratic] = field(default_factory=dict)

    def _forms(self, region: Region, bounds: Bounds) -> Form:
        label = torch.tensor([self.label], device=self.quick.device)
        weights, owner = margin_rows(label, self.quick.steps[-1].shape[0], self.quick.dtype)
        return pulled_back(self.quick, Rows(len(self.quick.steps) - 1, weights, owner), bounds.lines)

    def linear(self, eps: float) -> Attempt:
        """Backward propagation with the common lines."""
        region = Region.ball(self.image[None].to(self.quick.dtype), eps, self.norm)
        form = self._forms(region, bounded(self.quick, region))
        return Attempt(eps, float(form.minimum(region).min()), float(positive_within(form, region).min()))

    def quadratic(self, eps: float) -> Attempt:
        """The same, and quadratic certificates for the classes that it leaves open, the most open first.

        Where one of them fails there is no need to look at the others: the margin is at most what it leaves.
        """
        region = Region.ball(self.image[None].to(self.quick.dtype), eps, self.norm)
        bounds = bounded(self.quick, region)
        form = self._forms(region, bounds)
        least, radii = form.minimum(region), positive_within(form, region)
        exact = Region.ball(self.image[None], eps, self.norm)
        centre = bounded(self.made, exact.with_eps(0.0), rows=False)
        slopes = sectors(self.made, bounds, centre)
        logits = self.made.values(self.image[None])[-1][0]
        margins = _margins(self.made, logits, self.label)
        others = [j for j in range(len(logits)) if j != self.label]
        used: dict[int, Quadratic] = {}
        for place in least.argsort().tolist():
            if least[place] > 0 or thread_time() > self.deadline:
                break
            other = others[place]
            row = torch.zeros(1, len(logits), dtype=torch.float64, device=self.made.device)
            row[0, self.label], row[0, other] = 1.0, -1.0
            found = searched(self.made, slopes, row, exact, start=self.last.get(other))
            self.last[other] = used[other] = found
            change = SHARE * found.point.value * (eps if self.norm == "l2" else 1.0)
            left = float(margins[place]) - change
            least[place] = max(float(least[place]), left)
            share = eps if left > 0 else eps * float(margins[place]) / change if self.norm == "l2" else 0.0
            radii[place] = max(float(radii[place]), share)
            if left <= 0:
                break
        self.found[eps] = used
        return Attempt(eps, float(least.min()), float(radii.min()))


def _margins(made: Program, logits: Tensor, label: int) -> Tensor:
    weights, _ = margin_rows(torch.tensor([label], device=made.device), len(logits), logits.dtype)
    return weights @ logits


def _first_eps(made: Program, image: Tensor, label: int, norm: Norm) -> float:
    """A share of the radius at which the linearised network would change its answer."""
    order, share = {"l2": (2.0, 0.1), "linf": (1.0, 0.4), "l1": (math.inf, 0.1)}[norm]
    with torch.enable_grad():
        x = image[None].clone().requires_grad_()
        margins = _margins(made, made.values(x)[-1][0], label)
        slopes = [
            torch.linalg.vector_norm(torch.autograd.grad(margin, x, retain_graph=True)[0], ord=order)
            for margin in margins
        ]
    ratios = margins.detach() / torch.stack(slopes).clamp_min(1e-12)
    return share * float(ratios.min().clamp(1e-6, 1e3))
