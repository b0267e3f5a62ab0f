"""Local certificates of a batch of images: search in float32, proof in float64."""

import math
from dataclasses import dataclass
from time import thread_time

import torch
from torch import Tensor, nn

from robustres.certify.graph.capture import capture
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.margins import margin_rows, positive_within
from robustres.certify.local.program import Program, program
from robustres.certify.local.search import Attempt, largest_radius
from robustres.certify.local.sets import Region
from robustres.errors import InputError, UnsupportedOperationError
from robustres.numerics import require_certifiable_arithmetic
from robustres.threat import Norm

# What a search in float32 finds is proved in float64 a little inside.
INSIDE = 1 - 1e-5


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
    if not bool(torch.isfinite(logits).all()) or not limit > 0 or not float(_margins(made, logits, label).min()) > 0:
        return LocalRadius(0.0, label, None, (0.0, 0.0))
    found = largest_radius(
        lambda eps: crown_attempt(quick, image, label, norm, eps),
        margin=float(_margins(made, logits, label).min()),
        start=_first_eps(made, image, label, norm),
        limit=limit,
        deadline=begun + seconds,
    )
    searched = thread_time()
    radius, certificate = 0.0, None
    if found.radius > 0:
        certificate = Certificate(image, label, norm, found.radius * INSIDE)
        radius = proved_radius(made, certificate)
    return LocalRadius(radius, label, certificate, (searched - begun, thread_time() - searched))


def crown_attempt(quick: Program, image: Tensor, label: int, norm: Norm, eps: float) -> Attempt:
    """Backward propagation with the common lines at one eps."""
    region = Region.ball(image[None].to(quick.dtype), eps, norm)
    bounds = bounded(quick, region)
    weights, owner = margin_rows(torch.tensor([label], device=quick.device), quick.steps[-1].shape[0], quick.dtype)
    form = pulled_back(quick, Rows(len(quick.steps) - 1, weights, owner), bounds.lines)
    return Attempt(eps, float(form.minimum(region).min()), float(positive_within(form, region).min()))


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
