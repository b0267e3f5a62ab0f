"""Checks of arguments: each raises InputError with one sentence about the argument at fault."""

import math
from numbers import Integral, Real
from typing import Any

from robustres.errors import InputError


def require_number(
    name: str, value: Any, *, least: float = 0.0, positive: bool = False, whole: bool = False, optional: bool = False
) -> None:
    """Raise InputError unless the value is a finite number of at least `least`.

    positive: whether 0 is not allowed. whole: whether it must be an integer. optional: whether None is allowed too.

    >>> require_number("restarts", 0, least=1, whole=True)
    Traceback (most recent call last):
    robustres.errors.InputError: restarts must be a whole number of at least 1, got 0
    """
    if value is None and optional:
        return
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (fits and math.isfinite(value) and value >= least and (value > 0 or not positive)):
        kind = "whole number" if whole else "finite number"
        range_ = "above 0" if positive else f"of at least {least:g}"
        raise InputError(f"{name} must be a {kind} {range_}{', or None' * optional}, got {value!r}")


def require_kind(name: str, value: Any, kind: type, *, optional: bool = True) -> None:
    """Raise InputError unless the value is an instance of the class. optional: whether None is allowed too."""
    if not (isinstance(value, kind) or (value is None and optional)):
        raise InputError(
            f"{name} must be a {kind.__module__.split('.')[0]}.{kind.__name__}{', or None' * optional}, got "
            f"{type(value).__name__}"
        )
