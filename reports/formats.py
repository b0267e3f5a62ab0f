"""How numbers are written for people: shares, eps, radii, norms."""

import math
from typing import Any

from robustres.results import eps_words, rounded_text, share_text

__all__ = [
    "at_least",
    "at_most",
    "attack_text",
    "bound_text",
    "eps_text",
    "norm_text",
    "number_text",
    "p_text",
    "radius_text",
    "share_as",
    "share_text",
]

# Attacks as the literature names them.
ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd": "APGD-CE",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "square": "Square",
    "ensemble": "APGD-CE + APGD-T + FAB + Square",
    "ddn": "DDN",
    "fmn": "FMN",
    "ldn": "LDN",
    "sigma-zero": "σ-zero",
    "deepfool": "DeepFool",
    "hopskipjump": "HopSkipJump",
    "gaussian-noise": "Gaussian noise (average case)",
    "low-contrast": "low contrast (average case)",
    "jpeg": "JPEG (average case)",
    "superdeepfool": "SuperDeepFool",
}
NORM_LABELS = {"l0": "ℓ0", "l1": "ℓ1", "l2": "ℓ2", "linf": "ℓ∞"}


def radius_text(value: float | None) -> str:
    """A certified radius, or an estimate from below: four digits, rounded down."""
    return rounded_text(value, up=False)


def bound_text(value: float | None) -> str:
    """A bound from above, or the distance of an example: four digits, rounded up."""
    return rounded_text(value, up=True)


def at_least(share: float | None) -> str:
    """A share from below in per cent, rounded down."""
    return share_text(share, up=False)


def at_most(share: float | None) -> str:
    """A share from above in per cent, rounded up."""
    return share_text(share, up=True)


def number_text(value: Any) -> str:
    """Four significant digits; a dash if there is no number.

    >>> number_text(1234567.0), number_text(0.000012), number_text(None)
    ('1.235e+06', '1.2e-05', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def eps_text(eps: float | None) -> str:
    """An eps as it is usually quoted: a short decimal, or a fraction of 255.

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


def share_as(share: float | None, kind: str) -> str:
    """A share in per cent: that of a "certificate" is rounded down, any other, a quotient of counts, to nearest."""
    return share_text(share, up=False if kind == "certificate" else None)


def attack_text(name: str) -> str:
    """An attack as the literature names it; a user's attack under its own name."""
    return ATTACKS.get(name, name)
