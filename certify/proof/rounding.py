"""How far what torch computes may lie from the exact values of a nonlinear function."""

import math
from dataclasses import dataclass

import torch

from robustres.numerics import UNIT_ROUNDOFF

# Assumed error of elementary functions: no vendor proves their accuracy, but all are within a few units. In float32,
# torch's own on a CPU are within 3 units of `relative` everywhere that a test looks.
FUNCTION_UNITS = 64


@dataclass(frozen=True)
class Rounding:
    """The error at an argument x is at most relative (constant |x| + |f(x)|) + square |x|^2, in l2, plus `lost` at each
    coordinate.

    lost: what underflow may add, flushing of subnormal numbers to zero included. reach: larger arguments may overflow
    on the way, so nothing is known there; in l2.
    """

    relative: float
    lost: float
    reach: float = math.inf
    square: float = 0.0


def least(dtype: torch.dtype) -> float:
    """Above the largest loss of one product, or of one number, near the smallest numbers, flushing to zero included."""
    return 4 * torch.finfo(dtype).tiny


def few_units(dtype: torch.dtype, *, lost: float = 1.0) -> Rounding:
    """An elementary function. lost: the products near the smallest numbers whose loss it may add up."""
    return Rounding(FUNCTION_UNITS * UNIT_ROUNDOFF[dtype], lost * least(dtype))
