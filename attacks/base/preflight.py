"""Checks of the model and the data before an attack; every message says how to fix the problem."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustres.errors import DataError, InputError, ModelError
from robustres.precision import named
from robustres.threat import ThreatModel, require_width


def check_types(model: object) -> None:
    """Refuse anything that is not a module, before using it."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a module's forward"
        )


def check_images(x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Check shapes, range and labels, and eps against the resolution of the images' type."""
    if not x.is_floating_point():
        raise DataError(f"images must be floating point on [0, 1], got {x.dtype}; divide 8-bit images by 255")
    if y.shape != (len(x),) or y.is_floating_point():
        cure = "for one image give x[None] and y[None]" if y.ndim == 0 else "from one-hot rows take y.argmax(dim=1)"
        raise DataError(
            f"labels must be integers of shape ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}; {cure}"
        )
    if len(x) == 0:
        return
    require_width(threat, x[0].numel())
    low, high = float(x.min()), float(x.max())
    if not torch.isfinite(x).all():
        sample = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"image {sample} has pixels that are NaN or infinite; remove or fix it")
    if low < 0 or high > 1:
        cure = "divide by 255" if high > 2 and low >= 0 else "undo the normalisation and make it part of the model"
        raise DataError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {cure}")
    # Twice the spacing of numbers below 2: a smaller eps cannot be represented well.
    resolution = 2 * torch.finfo(x.dtype).eps
    if threat.eps < resolution:
        raise InputError(
            f"eps {threat.eps:g} is below the resolution of {named(x.dtype)} images ({resolution:.2g}); give them in "
            "float64 to a float64 model, x.double() and model.double(), or take a larger eps"
        )


def check_rounding(dtype: torch.dtype, threat: ThreatModel) -> None:
    """Refuse an eps that is smaller than the rounding of the model's input."""
    rounding = torch.finfo(dtype).eps / 4  # of numbers just below 1
    if threat.eps < rounding:
        raise InputError(
            f"eps {threat.eps:g} is below the rounding of {named(dtype)} ({rounding:.2g}), the type of the model's "
            "input; convert the model by model.double(), or take a larger eps"
        )


def check_mode(model: nn.Module, *, allowed: bool) -> None:
    """Refuse a model in training mode: dropout and batch statistics would change the function under attack."""
    if not allowed and (training := [name or "the model" for name, m in model.named_modules() if m.training]):
        raise ModelError(
            f"{training[0]} is in training mode ({len(training)} modules are); call model.eval() first, "
            "or pass allow_training_mode=True to attack it as it is"
        )


@contextmanager
def mismatch_explained(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Explain errors of a model that is on another device than the images or has a fixed batch size."""
    try:
        yield
    except AssertionError as error:
        if "Guard failed" not in str(error):
            raise
        raise ModelError(
            f"the module of an exported program only takes batches of the exported size ({error}); load it with "
            "load_model, or export it with dynamic_shapes"
        ) from error
    except RuntimeError as error:
        weight = next((p for p in model.parameters() if p.is_floating_point()), x)
        if weight.device != x.device:
            raise ModelError(
                f"the model is on {weight.device} and the images are on {x.device}; "
                f"move them by x.to({str(weight.device)!r})"
            ) from error
        raise


def check_output(logits: object, count: int) -> None:
    """Check the shape of the model's output for `count` images."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the model must return logits of shape (N, classes), got {got} for {count} images; "
            "wrap it so that it returns one row of logits per image"
        )
    if logits.shape[1] < 2:
        raise ModelError("the model returns one logit per image; a classifier needs at least 2, so return both classes")


def check_classes(classes: int, y: Tensor, targets: Tensor | None) -> None:
    """Check the range of the labels and targets."""
    for name, values in (("label", y), ("target", targets)):
        if values is None:
            continue
        if values.shape != y.shape:
            raise DataError(f"{name}s must have shape {tuple(y.shape)}, got {tuple(values.shape)}")
        for bad in values[(values < 0) | (values >= classes)].tolist()[:1]:
            raise DataError(
                f"{name} {bad} is outside the model's {classes} classes (0 to {classes - 1}); "
                f"check that the {name}s belong to this model"
            )


def check_logits(logits: Tensor) -> None:
    """Refuse the output of a softmax: where it saturates, its gradients vanish and attacks fail."""
    sums = logits.double().sum(dim=1)
    if bool((logits >= 0).all() and (sums - 1).abs().max() < 1e-4):
        raise ModelError(
            "the model returns probabilities (every row is non-negative and sums to 1), which hides its gradients; "
            "let it return logits, for example by leaving its last softmax out or by taking the logarithm"
        )


def check_function(
    run: Callable[[Tensor], Tensor], probe: Tensor, answers: Tensor, clean: Tensor, *, roundoff: float
) -> None:
    """Refuse a model that is not a deterministic function of one image at a time, judged by the first images.

    The first image is evaluated once more between two others, in another batch and at another position.
    answers, clean: (B, K) logits of the probe (B, C, H, W), from two calls; `clean` may be the caller's.
    roundoff: relative spacing of the coarsest type in which the model computes; rounding differences are allowed.
    """
    among = _among_others(run, probe)
    among = answers[:1] if among is None else among
    if _difference(answers[:1], among, roundoff) == 0 == _difference(answers, clean, roundoff):
        return
    if (away := _difference(answers, run(probe), roundoff)) > 0:
        raise ModelError(
            f"the model answers the same images differently in two calls (logits differ by {away:.3g}), so no "
            "example found could be verified; switch its randomness off, or certify the smoothed classifier by "
            "randomised smoothing instead"
        )
    if (away := _difference(answers[:1], among, roundoff)) > 0:
        raise ModelError(
            f"the model's answer to an image depends on the other images of its batch (logits differ by {away:.3g}), "
            "so no example found could be verified; usual causes are a batch normalisation without running "
            "statistics, a network traced in training mode (export it after model.eval()), and dynamic quantisation"
        )
    raise ModelError(
        f"the logits given as clean differ by {_difference(answers, clean, roundoff):.3g} from the model's answers to "
        "these images; leave them out, or compute them with this model"
    )


def _among_others(run: Callable[[Tensor], Tensor], probe: Tensor) -> Tensor | None:
    """Logits (1, K) of the first image between a black and a white one; None for a model of fixed batch size."""
    first = probe[:1]
    try:
        return run(torch.cat([torch.zeros_like(first), first, torch.ones_like(first)]))[1:2]
    except (RuntimeError, ModelError):
        return None


def _difference(first: Tensor, second: Tensor, roundoff: float) -> float:
    """The largest difference between the logits if it exceeds what rounding can cause, else 0."""
    away = float((first - second).abs().nan_to_num(0, 0, 0).max())
    largest = max(1.0, float(first.abs().nan_to_num(0, 0, 0).max()))
    return away if away > max(1e-3, 8 * roundoff) * largest else 0.0


def warn_without_gradients(gradient: Tensor) -> None:
    """Warn if no logit depends differentiably on any pixel, so that the search has nothing to follow."""
    if len(gradient) and not bool(gradient.any()):
        warnings.warn(
            f"the gradient of every logit is exactly zero at {len(gradient)} of the first images: the model is not "
            "differentiable there and surviving this attack means nothing; use a black-box attack (square)",
            stacklevel=3,
        )
