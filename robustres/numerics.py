"""Rounding and precision: the functions that protect guarantees from floating-point errors.

Notation of Higham (2002), Accuracy and Stability of Numerical Algorithms, chapter 3: unit roundoff u, and
gamma_n = n u / (1 - n u), which bounds the relative error of n rounded operations in any order.
"""

import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from robustres.errors import InputError, PrecisionError

SMALLEST_NORMAL = sys.float_info.min
UNIT_ROUNDOFF: dict[torch.dtype, float] = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


def gamma(operations: int, dtype: torch.dtype = torch.float64) -> float:
    """Relative error bound of `operations` accumulated roundings (Higham 2002, lemma 3.1), itself rounded up."""
    u = UNIT_ROUNDOFF[dtype]
    if operations * u >= 1:
        raise PrecisionError(f"{operations} operations in {dtype} have no finite error bound; use float64")
    return math.nextafter(operations * u / (1 - operations * u), math.inf)


def rounded_up(value: float, operations: int) -> float:
    """A float at or above the exact value, computed in float64 with the given number of roundings; NaN becomes
    infinity.
    """
    if math.isnan(value):
        return math.inf
    return math.nextafter(value * (1 + gamma(operations + 2)), math.inf)


def product_up(factors: Iterable[float]) -> float:
    """A float at or above the product of non-negative numbers; mantissas and exponents are handled separately, so that
    no intermediate result overflows or underflows.

    >>> 1 <= product_up([1e-200, 1e-200, 1e200, 1e200]) < 1 + 1e-14
    True
    """
    numbers = list(factors)
    if not all(math.isfinite(number) for number in numbers):
        return math.inf
    mantissa, exponent = 1.0, 0
    for number in numbers:
        mantissa, shift = math.frexp(mantissa * math.frexp(number)[0])
        exponent += shift + math.frexp(number)[1]
    return scaled_up(rounded_up(mantissa, len(numbers)) if len(numbers) > 1 and mantissa else mantissa, exponent)


def sum_up(terms: Iterable[float]) -> float:
    """A float at or above the sum of non-negative numbers; infinite if it overflows."""
    numbers = list(terms)
    return rounded_up(sum(numbers), len(numbers)) if len(numbers) > 1 else sum(numbers)


def scaled_up(value: float, exponent: int) -> float:
    """A float at or above value * 2^exponent for a non-negative value; exact unless the result is subnormal."""
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return math.nextafter(scaled, math.inf) if value and scaled < SMALLEST_NORMAL else scaled


def scaled_down(value: float, exponent: int) -> float:
    """A float at or below value * 2^exponent for a non-negative value."""
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return sys.float_info.max
    return math.nextafter(scaled, 0.0) if scaled < SMALLEST_NORMAL else scaled


def rounded_down(value: float, operations: int) -> float:
    """A float at or below the exact non-negative value, computed with the given number of roundings; NaN becomes 0."""
    if math.isnan(value):
        return 0.0
    return max(0.0, math.nextafter(value * (1 - gamma(operations + 2)), -math.inf))


def round_radius_down(radius: Tensor) -> Tensor:
    """Radii moved one float towards 0; negative, NaN and infinite ones become 0."""
    usable = torch.isfinite(radius) & (radius > 0)
    return torch.where(usable, torch.nextafter(radius, torch.zeros_like(radius)), torch.zeros_like(radius))


def require_certifiable_arithmetic(device: torch.device | str) -> None:
    """Refuse arithmetic that no rounding bound covers (autocast anywhere, TF32 on a CUDA device), or that has no values
    (the device meta) or no derivatives (inference mode).
    """
    kind = torch.device(device).type
    if kind == "meta":
        raise InputError("tensors on the device 'meta' have no values; move the model and the images to another device")
    if torch.is_inference_mode_enabled():
        raise InputError("certification needs derivatives; leave torch.inference_mode before calling it")
    if torch.is_autocast_enabled(kind):
        raise PrecisionError(
            "certification is not possible under autocast; leave the autocast context before calling it"
        )
    if kind == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
        raise PrecisionError(
            "certification is not possible with TF32; set torch.backends.cuda.matmul.allow_tf32 = False and "
            "torch.backends.cudnn.allow_tf32 = False"
        )


def distance(difference: Tensor, norm: str) -> Tensor:
    """Norm of each sample of `difference` (N, ...), computed in float64; in l0 how many entries are not 0; (N,)."""
    flat = difference.detach().to(torch.float64).flatten(1)
    order = {"l2": 2.0, "linf": math.inf, "l1": 1.0, "l0": 0.0}[norm]
    length: Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1)
    return length
