"""How numbers are written for people: shares, eps, radii, norms."""

import math
from typing import Any

from robustres.results import eps_words

NORM_LABELS = {"l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}


def share_text(value: float | None) -> str:
    """A share in per cent.

    >>> share_text(0.8126)
    '81.3 %'
    >>> share_text(-1e-9)
    '0.0 %'
    """
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return "–" if value is None or math.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f} %"


def number_text(value: Any) -> str:
    """Four significant digits; a dash where there is no number.

    >>> number_text(1234567.0), number_text(0.000012), number_text(None)
    ('1.235e+06', '1.2e-05', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def eps_text(eps: float | None) -> str:
    """An eps as people quote it: a short decimal, or a fraction of 255.

    >>> eps_text(8 / 255), eps_text(0.5), eps_text(0.2), eps_text(float("nan"))
    ('8/255', '0.5', '0.2', 'any')
    """
    if eps is None or math.isnan(eps):
        return "any"
    return eps_words(eps)


def p_text(p: float) -> str:
    """A p-value.

    >>> p_text(0.2345), p_text(1e-9)
    ('p = 0.234', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def norm_text(norm: str) -> str:
    """A norm as it is printed."""
    return NORM_LABELS.get(norm, norm)
