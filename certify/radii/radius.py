"""Certified radii in pixel units from the Lipschitz bound of a network (section 4 of the mathematics)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from robustres.arguments import require_kind, require_number
from robustres.at_hand import images_tensor
from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.bounds.lipschitz import lipschitz
from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.graph.capture import device_of, refusing_what_fails
from robustres.certify.proof.bound import Guarantee, all_hold
from robustres.certify.radii.forward_rounding import Deviation, require_covered_float32
from robustres.certify.radii.local_certificate import LocalCertificate, require_classes
from robustres.certify.radii.margin_radii import Choice, Norm, largest, routes_of
from robustres.errors import InputError, PrecisionError, UnsupportedOperationError
from robustres.guard import evaluation_mode, random_state_kept
from robustres.numerics import require_certifiable_arithmetic, round_radius_down, rounded_up
from robustres.precision import taking


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certified radii of a batch of images.

    radius: (N,) float64, pixel units in `norm`, rounded down: within it the model's prediction cannot change. 0 if
    nothing is certified: ties, NaN, infinite logits. It does not say whether the prediction is correct.
    prediction: (N,) int64. margin: (N,) float64, the largest logit minus the second largest.
    source: (N,) the bound that gave each radius. guarantee: for all radii together; never a mixture, since all radii
        are based on the same bounds of the network's pieces.
    """

    radius: Tensor
    prediction: Tensor
    margin: Tensor
    norm: Norm
    source: tuple[str, ...]
    guarantee: Guarantee


def certify(
    model: nn.Module,
    x: Tensor,
    *,
    norm: Norm = "l2",
    certificate: Choice | Literal["local"] = "lipschitz",
    report: LipschitzReport | None = None,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 256,
    seconds: float = 5.0,
) -> Certificates:
    """The radius around each image within which the model's prediction provably cannot change.

    Guaranteed: no image within `radius` of x, in `norm` and pixel units, is classified differently by the model in
    evaluation mode, neither in exact arithmetic nor computed in `dtype`: the possible rounding error of the logits, at
    x and anywhere in the ball, is subtracted from the margin. In float32 this error is large unless the layers are
    close to non-expansive; an operation without a float32 error bound raises PrecisionError.

    x: images (N, *input_shape) in [0, 1].
    certificate: "lipschitz" uses the report's bounds, and bounds for pairs of classes if all of them take no more than
        a quarter of the effort for the whole network; "best" takes, per sample, the largest radius of all routes, with
        up to fifteen times that effort for pairs of classes, beginning with those that decide the most samples (stored
        in the report); "local" uses bounds around each image instead, within [0, 1]^n, for about `seconds` of
        one core each (`LocalCertificate`). For functions other than the network (smoothing), and for
        the best of several certificates, see `certify_best`.
    report: of `lipschitz` on this model; computed if omitted.
    dtype: torch.float64, or torch.float32 for the model as it runs in float32.
    Raises: UnsupportedOperationError if the network is not covered; PrecisionError under TF32 or autocast;
    InputError if the report is for another model or shape.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.eye(2))
    >>> radius = certify(model, torch.tensor([[[[0.75, 0.25]]]])).radius.item()
    >>> 0.353553 < radius < 0.5 / 2**0.5
    True
    """
    x = images_tensor(x)
    _check(model, x, norm, dtype)
    require_kind("report", report, LipschitzReport)
    require_number("batch_size", batch_size, least=1, whole=True)
    if report is not None and report.input_shape != tuple(x.shape[1:]):
        raise InputError(
            f"the report is for inputs of shape {report.input_shape}, the images have {tuple(x.shape[1:])}"
        )
    if certificate == "local":
        with refusing_what_fails("bounding it around an image"):
            return _local(model, x, norm, report, dtype, seconds)
    if report is None:
        report = lipschitz(model, tuple(x.shape[1:]))
    analysis = report.analysis
    if analysis is None:
        raise UnsupportedOperationError(report.refused)
    require_classes(analysis.captured)
    if dtype == torch.float32:
        require_covered_float32(analysis.captured, model, x)
    with refusing_what_fails("computing radii"):
        return _certified(model, x, report, analysis, norm, certificate, dtype, batch_size)


def _certified(
    model: nn.Module,
    x: Tensor,
    report: LipschitzReport,
    analysis: Analysis,
    norm: Norm,
    certificate: Choice,
    dtype: torch.dtype,
    batch_size: int,
) -> Certificates:
    with torch.no_grad():
        exact = x.detach().to(device_of(analysis.captured.module), torch.float64)
        analysis.require_same_model(model, exact)
        logits, sizes = analysis.measured(exact, batch_size=batch_size)
        if dtype == torch.float32:
            exactly, logits = logits, _float32_logits(model, x, batch_size)
            _require_rounding(logits - exactly, Deviation(analysis, sizes, torch.zeros(len(x)).double(), dtype))
        routes = routes_of(report, norm, certificate, logits)
        free, _ = largest(routes, logits, torch.zeros(len(logits), dtype=torch.float64))
        radius, source = largest(routes, logits, _charge(report, analysis, logits, sizes, free, norm, dtype))
    if report.domain == "unit":  # no bound holds for images outside
        inside = ((exact >= 0) & (exact <= 1)).reshape(len(exact), -1).all(1).cpu()
        radius = torch.where(inside, radius, 0.0)
    top = logits.topk(2, dim=1).values
    return Certificates(
        radius=round_radius_down(radius),
        prediction=logits.argmax(dim=1),
        margin=top[:, 0] - top[:, 1],
        norm=norm,
        source=source,
        guarantee=all_hold(row.guarantee for _, _, row in analysis.bounder.rows(analysis.output)),
    )


def _local(
    model: nn.Module, x: Tensor, norm: Norm, report: LipschitzReport | None, dtype: torch.dtype, seconds: float
) -> Certificates:
    column = LocalCertificate(norm, seconds, report, dtype=dtype)(model, x)
    images = x.to(device_of(model))
    with torch.no_grad(), evaluation_mode(model), random_state_kept():
        top = taking(model, images)(images).to("cpu", torch.float64).topk(2, dim=1).values
    margin = top[:, 0] - top[:, 1]
    return Certificates(column.radius, column.prediction, margin, norm, column.source, column.guarantee)


def _check(model: nn.Module, x: Tensor, norm: str, dtype: torch.dtype) -> None:
    if norm not in ("l2", "linf"):
        raise InputError(f"norm must be l2 or linf, got {norm!r}")
    if dtype not in (torch.float64, torch.float32):
        raise InputError(f"certification runs in torch.float64 or torch.float32, got {dtype}")
    if not x.is_floating_point() or x.ndim < 2 or not len(x) or x.layout != torch.strided:
        kind = x.dtype if x.layout == torch.strided else f"{x.layout} {x.dtype}"
        raise InputError(f"x must be a dense batch of floating-point images (N, C, H, W), got {kind} {tuple(x.shape)}")
    for device in (x.device, device_of(model)):
        require_certifiable_arithmetic(device)


def certified_accuracy_curve(radius: Tensor, correct: Tensor, eps: Sequence[float]) -> list[float]:
    """Share of all samples that are classified correctly and certified at each eps.

    >>> certified_accuracy_curve(torch.tensor([0.5, 0.2]), torch.tensor([True, True]), [0.1, 0.3])
    [1.0, 0.5]
    """
    if not len(radius):
        raise InputError("certified accuracy needs at least one sample")
    return [float((correct & (radius >= budget)).double().mean()) for budget in eps]


def _float32_logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """The logits as the model itself computes them, converted to float64."""
    with evaluation_mode(model), random_state_kept():
        batches = torch.split(x.to(device_of(model)), batch_size)
        return torch.cat([model(batch.clone()) for batch in batches]).to("cpu", torch.float64)


def _require_rounding(difference: Tensor, deviation: Deviation) -> None:
    """Refuse a model whose float32 logits differ from the exact ones (N, classes) by more than rounding can."""
    found, most = difference.norm(dim=1), deviation.at_output()
    if bool((found > most).any()):
        place = int((found > most).nonzero()[0])
        raise PrecisionError(
            f"the model's answer in float32 to image {place} differs by {float(found[place]):.2g} from the exact one, "
            f"and rounding can explain only {float(most[place]):.2g}: it computes something else in float32, or in a "
            "narrower type; make its answer the same in all types, or certify in torch.float64"
        )


def _charge(
    report: LipschitzReport,
    analysis: Analysis,
    logits: Tensor,
    sizes: dict[fx.Node, Tensor],
    free: Tensor,
    norm: Norm,
    dtype: torch.dtype,
) -> Tensor:
    """(N,): bound on the rounding error of the difference of two logits, at x and at the other input together.

    free: (N,) the radii that would be certified without rounding; the certified radii are smaller.
    """
    dimension = math.prod(report.input_shape)
    ball = free if norm == "l2" else free * rounded_up(math.sqrt(dimension), 1)
    deviation = Deviation(analysis, sizes, ball.clamp_min(0), dtype).at_output()
    return 2 * math.sqrt(2) * deviation * (1 + 1e-12)
