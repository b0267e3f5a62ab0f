"""Padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import device_of

# The torch names of the ONNX modes.
MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
LARGEST = 2**24


@operator("Pad", 2, 11, 13, 18, 19, 21, 23, 24, 25)
def pad(call: Call) -> Tensor:
    """Pad some axes: with a constant, by reflection, by replicating the edge, or circularly."""
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    if mode not in MODES:
        raise ModelError(f"pads by {mode!r}")
    if call.version < 11:
        amounts = call.ints_attribute("pads") or []
        value: float = call.attribute("value", 0.0)
    else:
        amounts = call.static_ints(1, "amounts")
        value = call.number(2, "a value") if call.given(2) else 0.0
    given = call.static_ints(3, "axes") if call.version >= 18 and call.given(3) else list(range(x.ndim))
    axes = [call.axis(axis, x.ndim) for axis in given]
    if len(amounts) != 2 * len(axes) or any(abs(amount) > LARGEST for amount in amounts):
        raise ModelError(f"has {len(amounts)} amounts for {len(axes)} axes, or amounts that are too large")
    pairs = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        pairs[axis] = (before, after)
    return bordered(x, pairs, mode, value)


def bordered(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str, value: float = 0.0) -> Tensor:
    """The tensor padded before and after along every axis; negative amounts crop in every mode."""
    touched = [axis for axis, pair in enumerate(pairs) if pair != (0, 0)]
    if not touched:
        return x
    tail = pairs[touched[0] :]
    flat = [amount for pair in reversed(tail) for amount in pair]
    if mode == "constant":
        return functional.pad(x, flat, value=value)
    if x.ndim in (3, 4) and touched[0] >= 2 and min(flat) >= 0 and _fits(x, pairs, mode) and x.dtype.is_floating_point:
        whole = [amount for pair in reversed(pairs[2:]) for amount in pair]
        return functional.pad(x, whole, mode=MODES[mode])
    for axis in touched:
        side = x.shape[axis]
        if not isinstance(side, int):
            raise ModelError("pads the batch axis")
        if mode == "wrap" and min(pairs[axis]) < 0:  # what is left is repeated
            x = torch.narrow(x, axis, cut := max(-pairs[axis][0], 0), side - cut - max(-pairs[axis][1], 0))
            pairs = [*pairs[:axis], (max(pairs[axis][0], 0), max(pairs[axis][1], 0)), *pairs[axis + 1 :]]
            side = int(x.shape[axis])
        places = torch.arange(-pairs[axis][0], side + pairs[axis][1])
        x = torch.index_select(x, axis, PLACES[mode](places, side).to(device_of(x)))
    return x


def _fits(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str) -> bool:
    """Whether torch supports this amount of padding in this mode."""
    room = {"reflect": 1, "wrap": 0, "edge": -LARGEST}[mode]
    sides = x.shape[2:]
    return all(max(pair) <= side - room for pair, side in zip(pairs[2:], sides, strict=True))


def _mirrored(places: Tensor, side: int) -> Tensor:
    period = max(2 * (side - 1), 1)
    folded = places % period
    return torch.where(folded >= side, period - folded, folded)


PLACES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "reflect": _mirrored,
    "edge": lambda places, side: places.clamp(0, side - 1),
    "wrap": lambda places, side: places % side,
}
