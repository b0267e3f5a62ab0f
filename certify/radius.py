"""Certified radii in pixel units from the Lipschitz bound of a network (section 4 of the mathematics)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustres.certify.capture import device_of, float64_copy
from robustres.certify.lipschitz import Norm, lipschitz
from robustres.certify.report import LipschitzReport
from robustres.errors import InputError, UnsupportedOperationError
from robustres.guard import random_state_kept
from robustres.numerics import require_certifiable_arithmetic, round_radius_down, rounded_up


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certified radii of a batch of images.

    radius: (N,) float64, pixel units in `norm`, rounded down: within it the model's prediction cannot change. 0 where
        nothing is certified: ties, NaN, infinite logits. It says nothing about whether the prediction is correct.
    prediction: (N,) int64. margin: (N,) float64, the largest logit minus the second largest.
    source: which bound gave the radii. guarantee: "deterministic" or "probability 1 - DELTA", for all radii together.
    """

    radius: Tensor
    prediction: Tensor
    margin: Tensor
    norm: Norm
    source: str
    guarantee: str


def certify(
    model: nn.Module,
    x: Tensor,
    *,
    norm: Norm = "l2",
    report: LipschitzReport | None = None,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 256,
) -> Certificates:
    """The radius around each image within which the model's prediction provably cannot change.

    Guaranteed: no image within `radius` of x, in `norm` and pixel units, is answered with another class by the model
    in evaluation mode and exact arithmetic; the rounding of the float64 forward pass is charged against the margin.

    x: images (N, *input_shape) in [0, 1]. report: of `lipschitz` on this very model; computed here if left out.
    Raises: UnsupportedOperationError where the network is not covered; PrecisionError under TF32 or autocast.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> certify(model, torch.tensor([[[[0.8, 0.2]]]])).radius.item() == 0.6 / 2**0.5
    False
    """
    if norm not in ("l2", "linf"):
        raise InputError(f"norm must be l2 or linf, got {norm!r}")
    if not x.is_floating_point() or x.ndim < 2:
        raise InputError(f"x must be a batch of floating-point images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    require_certifiable_arithmetic(x.device)
    input_shape = tuple(x.shape[1:])
    if report is None:
        report = lipschitz(model, input_shape, joint=True)
    if report.refused:
        raise UnsupportedOperationError(report.refused)
    if report.input_shape != input_shape:
        raise InputError(f"the report is about inputs of shape {report.input_shape}, the images have {input_shape}")
    logits = _logits(model, x, batch_size)
    deviation = _deviation(logits)
    radius, source = _radii(report, logits, deviation, norm, math.prod(input_shape))
    top = logits.topk(2, dim=1).values
    return Certificates(
        radius=round_radius_down(radius),
        prediction=logits.argmax(dim=1),
        margin=top[:, 0] - top[:, 1],
        norm=norm,
        source=source,
        guarantee=str(report.guarantee),
    )


def certified_accuracy_curve(radius: Tensor, correct: Tensor, eps: Sequence[float]) -> list[float]:
    """Share of all samples that are correctly classified and certified at each eps.

    >>> certified_accuracy_curve(torch.tensor([0.5, 0.2]), torch.tensor([True, True]), [0.1, 0.3])
    [1.0, 0.5]
    """
    if not len(radius):
        raise InputError("certified accuracy needs at least one sample")
    return [float((correct & (radius >= budget)).double().mean()) for budget in eps]


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """The model's float64 logits, computed on a copy of it."""
    module = float64_copy(model)
    with torch.no_grad(), random_state_kept():
        batches = x.to(device_of(module), torch.float64).split(batch_size)
        logits = torch.cat([module(batch) for batch in batches])
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"a radius needs logits (N, classes) of at least 2 classes, got {tuple(logits.shape)}")
    return logits


def _deviation(logits: Tensor) -> Tensor:
    """(N,) what float64 rounding may have moved a logit by, charged generously: 1e-7 of the largest logit."""
    return 1e-7 * (1 + logits.abs().amax(dim=1))


def _radii(
    report: LipschitzReport, logits: Tensor, deviation: Tensor, norm: Norm, dimension: int
) -> tuple[Tensor, str]:
    """The largest of the radii that the report allows, and which bound gave it."""
    routes = {"linf rows": _route(report, logits, deviation, "linf")} if norm == "linf" else {}
    l2 = _route(report, logits, deviation, "l2")
    routes["l2"] = l2 if norm == "l2" else l2 / rounded_up(math.sqrt(dimension), 1)
    source = max(routes, key=lambda name: float(routes[name].nan_to_num(0, 0, 0).sum()))
    best = torch.stack([route.nan_to_num(0.0, 0.0, 0.0) for route in routes.values()]).amax(dim=0)
    pairs = "pairwise head" if report.head is not None else "whole network"
    return best, f"{pairs}, {source}"


def _route(report: LipschitzReport, logits: Tensor, deviation: Tensor, norm: Norm) -> Tensor:
    """min over classes of margin / constant of that difference of logits, (N,); NaN and negative where undecided."""
    prediction = logits.argmax(dim=1)
    radii = torch.full((len(logits),), torch.nan, dtype=torch.float64, device=logits.device)
    for label in prediction.unique().tolist():
        chosen = prediction == label
        constants = _pair_constants(report, label, logits.shape[1], norm).to(logits.device)
        gap = logits[chosen][:, label, None] - logits[chosen] - 2 * deviation[chosen, None]
        gap = gap - gap.abs() * 2**-52
        ratio = gap / constants
        ratio[:, label] = torch.inf
        radii[chosen] = ratio.amin(dim=1)
    return torch.where(torch.isfinite(logits).all(dim=1), radii, 0.0)


def _pair_constants(report: LipschitzReport, label: int, classes: int, norm: Norm) -> Tensor:
    """Bounds of the constant of z_label - z_j for every j, (classes,), in `norm`."""
    if report.head is not None:
        body = report.head.body_l2 if norm == "l2" else report.head.body_linf
        paired = report.head.pair_norms(label, norm) * body * (1 + 2**-50)
    else:
        paired = torch.full((classes,), math.inf, dtype=torch.float64)
    whole = rounded_up(math.sqrt(2) * report.upper, 2) if norm == "l2" else rounded_up(2 * report.linf_upper, 1)
    return paired.nan_to_num(math.inf).clamp_max(whole)
