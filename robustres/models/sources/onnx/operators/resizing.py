"""Resizing of images. Every mode is a linear map along each axis, given by its matrix."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import Side, device_of

LARGEST = 2**14
# Before operator set 11 the nearest position is unspecified; runtimes use this rule.
BEFORE_11 = "before set 11"


@dataclass(frozen=True)
class Rule:
    """How an axis is resized; the attributes of `Resize`."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


@operator("Upsample", 7, 9)
def upsample(call: Call) -> Tensor:
    """Upsample by factors."""
    scales = call.attributes.get("scales") if call.version == 7 else _floats(call, 1)
    return _resized(call, _checked(scales), None, Rule(call.attribute("mode", "nearest"), "asymmetric", BEFORE_11))


@operator("Resize", 10, 11, 13, 18, 19)
def resize(call: Call) -> Tensor:
    """Resize by factors or to given sizes."""
    mode = call.attribute("mode", "nearest")
    if call.version == 10:
        return _resized(call, _checked(_floats(call, 1)), None, Rule(mode, "asymmetric", BEFORE_11))
    rule = Rule(
        mode,
        call.attribute("coordinate_transformation_mode", "half_pixel"),
        call.attribute("nearest_mode", "round_prefer_floor"),
        call.attribute("cubic_coeff_a", -0.75),
        bool(call.attribute("exclude_outside", 0)),
        bool(call.attribute("antialias", 0)),
    )
    scales = _floats(call, 2) if call.given(2) else []
    sizes = call.ints(3, "sizes") if call.given(3) else []
    if bool(scales) == bool(sizes):
        raise ModelError("must be given either factors or sizes")
    return _resized(call, _checked(scales) if scales else None, sizes or None, rule)


def _floats(call: Call, position: int) -> list[float]:
    numbers: list[float] = call.constant(position, "factors").reshape(-1).tolist()
    return numbers


def _checked(scales: object) -> list[float]:
    if not isinstance(scales, list) or not all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in scales):
        raise ModelError(f"has the factors {str(scales)[:100]}")
    return scales


def _resized(call: Call, scales: list[float] | None, sizes: list[Side] | None, rule: Rule) -> Tensor:
    x = call.tensor(0)
    given = call.ints_attribute("axes")
    axes = [call.axis(axis, x.ndim) for axis in (range(x.ndim) if given is None else given)]
    if len(scales if scales is not None else sizes or []) != len(axes):
        raise ModelError(f"has a number of factors or sizes other than its {len(axes)} axes")
    plans: dict[int, tuple[int, float]] = {}
    for place, axis in enumerate(axes):
        side = x.shape[axis]
        if scales is not None and scales[place] == 1:
            continue
        if sizes is not None and (sizes[place] == side or (axis == 0 and sizes[place] == call.fixed_batch)):
            continue
        wanted = sizes[place] if sizes is not None else None
        if not isinstance(side, int) or side < 1 or not isinstance(wanted, int | None):
            raise ModelError("resizes the batch axis")
        scale = wanted / side if wanted is not None else scales[place]  # type: ignore[index]
        plans[axis] = (wanted if wanted is not None else math.floor(side * scale), scale)
    plans = _with_aspect(call, x, plans)
    if any(not 1 <= size <= LARGEST for size, _ in plans.values()):
        raise ModelError(f"resizes to {[size for size, _ in plans.values()]}; sizes from 1 to {LARGEST} are allowed")
    return _applied(x, plans, rule)


def _with_aspect(call: Call, x: Tensor, plans: dict[int, tuple[int, float]]) -> dict[int, tuple[int, float]]:
    """One factor for all axes, the smallest or the largest, if the node requests it."""
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch" or not plans or not call.given(3):
        return plans
    if policy not in {"not_larger", "not_smaller"}:
        raise ModelError(f"has the policy {policy!r}")
    scale = (min if policy == "not_larger" else max)(scale for _, scale in plans.values())
    return {axis: (math.floor(x.shape[axis] * scale + 0.5), scale) for axis in plans}


def _applied(x: Tensor, plans: dict[int, tuple[int, float]], rule: Rule) -> Tensor:
    if rule.mode == "nearest":
        chosen = {axis: nearest_places(x.shape[axis], size, scale, rule) for axis, (size, scale) in plans.items()}
        if x.ndim == 4 and set(chosen) <= {2, 3} and all(_as_torch(p, x.shape[axis]) for axis, p in chosen.items()):
            sides = tuple(len(chosen[axis]) if axis in chosen else int(x.shape[axis]) for axis in (2, 3))
            return functional.interpolate(x, size=sides, mode="nearest") if chosen else x
        for axis, places in chosen.items():
            x = torch.index_select(x, axis, places.to(device_of(x)))
        return x
    for axis, (size, scale) in plans.items():
        matrix = weights(int(x.shape[axis]), size, scale, rule).to(device_of(x), x.dtype)
        x = torch.transpose(torch.matmul(torch.transpose(x, axis, -1), matrix.T.contiguous()), axis, -1)
    return x


def positions(side: int, size: int, scale: float, coordinates: str) -> Tensor:
    """Source positions, among `side`, of each of `size` outputs, by the coordinate mode.

    In float32, as in onnxruntime: halfway between two inputs, the rounding decides which is nearest.
    """
    return _positions(torch.arange(size, dtype=torch.float32), side, size, scale, coordinates).to(torch.float64)


def _positions(out: Tensor, side: int, size: int, scale: float, coordinates: str) -> Tensor:
    if coordinates == "asymmetric":
        return out / scale
    if coordinates == "align_corners":
        return out * (side - 1) / (side * scale - 1) if size > 1 else torch.zeros(1)
    if coordinates == "pytorch_half_pixel" and size == 1:
        return torch.zeros(1)
    if coordinates == "half_pixel_symmetric":
        adjustment = size / (scale * side)
        return side / 2 * (1 - adjustment) + (out + 0.5) / scale - 0.5
    if coordinates in {"half_pixel", "pytorch_half_pixel"}:
        return (out + 0.5) / scale - 0.5
    if coordinates == "tf_half_pixel_for_nn":
        return (out + 0.5) / scale
    raise ModelError(f"has the coordinates {coordinates!r}, which are not supported")


def nearest_places(side: int, size: int, scale: float, rule: Rule) -> Tensor:
    """Index among `side` inputs of the one that each of `size` outputs takes."""
    x = positions(side, size, scale, rule.coordinates)
    rounded = {
        "round_prefer_floor": torch.ceil(x - 0.5),
        "round_prefer_ceil": torch.floor(x + 0.5),
        "floor": torch.floor(x),
        "ceil": torch.ceil(x),
        BEFORE_11: torch.ceil(x) if scale < 1 else torch.floor(x),
    }
    if rule.nearest not in rounded:
        raise ModelError(f"rounds by {rule.nearest!r}")
    return rounded[rule.nearest].to(torch.int64).clamp(0, side - 1)


def weights(side: int, size: int, scale: float, rule: Rule) -> Tensor:
    """The interpolation matrix (size, side), linear or cubic."""
    x = positions(side, size, scale, rule.coordinates)
    stretch = max(1 / scale, 1.0) if rule.antialias else 1.0
    radius = {"linear": 1.0, "cubic": 2.0}.get(rule.mode)
    if radius is None:
        raise ModelError(f"interpolates by {rule.mode!r}")
    count = math.ceil(2 * radius * stretch) + 2
    neighbours = torch.floor(x)[:, None] + torch.arange(-(count // 2), count // 2 + 1, dtype=torch.float64)
    distance = (neighbours - x[:, None]).abs() / stretch
    values = (1 - distance).clamp(min=0) if rule.mode == "linear" else _cubic(distance, rule.cubic)
    outside = (neighbours < 0) | (neighbours > side - 1)
    if rule.exclude_outside:
        values = torch.where(outside, 0.0, values)
    values = values / values.sum(dim=1, keepdim=True)
    matrix = torch.zeros(size, side, dtype=torch.float64)
    return matrix.scatter_add_(1, neighbours.to(torch.int64).clamp(0, side - 1), values)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _as_torch(places: Tensor, side: int) -> bool:
    """Whether torch chooses the same positions."""
    own = functional.interpolate(torch.arange(side, dtype=torch.float64)[None, None], size=len(places), mode="nearest")
    return torch.equal(own[0, 0].to(torch.int64), places)
