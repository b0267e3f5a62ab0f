"""Checks before an evaluation writes its first file: outputs of the right shape, finite, and known labels."""

import torch
from torch import Tensor, nn

from robustres.data import ImageSet
from robustres.errors import DataError, InputError, ModelError, Refusal
from robustres.numerics import UNIT_ROUNDOFF
from robustres.precision import floating_types, named, taking


def check_output(model: nn.Module, data: ImageSet, *, device: torch.device) -> int:
    """Number of classes of the model; raises ModelError or DataError if the model and the data do not match."""
    shape = data.image_shape
    probe = data.batch(torch.arange(min(2, len(data)))).to(device)
    try:
        with torch.no_grad():
            logits = taking(model, probe)(probe)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot process images of shape {shape} (channels, height, width): {reason}; "
            "check that the data belongs to this model"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != len(probe):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the model must return logits of shape (N, classes), got {got} for {len(probe)} images; "
            "wrap it so that it returns one row of logits per image"
        )
    classes = int(logits.shape[1])
    if classes < 2:
        raise ModelError("the model returns one logit per image; a classifier needs at least 2, so return both classes")
    largest = int(data.labels.max())
    if largest >= classes:
        index = int(data.labels.argmax())
        raise DataError(
            f"label {largest} of sample {index} is outside the model's {classes} classes (0 to {classes - 1}); "
            "check that the labels belong to this model"
        )
    return classes


def not_finite(logits: Tensor, index: Tensor) -> list[int]:
    """The samples among `index` (N,) whose logits (N, classes) contain a NaN or an infinity."""
    broken: list[int] = index[(~torch.isfinite(logits)).any(dim=1)].tolist()
    return broken


def require_finite(broken: list[int], samples: int) -> None:
    """Raise ModelError that names the first sample whose logits are not finite, if there is one."""
    if broken:
        raise ModelError(
            f"the logits of {len(broken)} of {samples} samples are not finite (NaN or infinity), first at sample "
            f"{min(broken)}; fix the model, or report these samples and continue with --keep-going"
        )


def uncovered_arithmetic(model: nn.Module) -> Refusal | None:
    """Why no radius covers the network as it runs, if its weights are in a type for which no bound is known."""
    for dtype in floating_types(model):
        if dtype not in UNIT_ROUNDOFF:
            return Refusal(
                "", f"arithmetic in {named(dtype)}, whose rounding no radius covers (certify model.float()),"
            )
    return None


def require_certifiable_type(model: nn.Module, dtype: str) -> None:
    """Raise InputError if radii are requested for the network as it runs in float32, but it runs in another type."""
    types = sorted(map(named, floating_types(model)))
    if dtype == "float32" and "float64" in types:
        raise InputError(
            f"radii of the network as it runs in float32 were requested, but its weights are {', '.join(types)}; "
            "leave dtype at float64, or convert it with model.float()"
        )
