"""The capability of the adversary: a norm and a budget, in pixel units on [0, 1]."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from robustres.errors import InputError

Norm = Literal["l2", "linf", "l1", "l0"]
# The norms in which attacks can be bounded. l0, the number of channel values that change, is not a norm: it has no
# dual, so no certificate covers it, and its balls have no projection for gradient steps.
ATTACK_NORMS: tuple[Norm, ...] = get_args(Norm)
NORMS: tuple[Norm, ...] = ("l2", "linf", "l1")


@dataclass(frozen=True)
class ThreatModel:
    """Every perturbation d with |d| <= eps in the given norm, the perturbed image staying in [0, 1].

    norm: "l2", "linf", "l1", or "l0", which counts the channel values that differ (a grey pixel is one, a coloured one
        three).
    eps: the radius of the closed ball, > 0, in pixel units ([0, 1] images), in l0 a number of values; with math.inf,
        only [0, 1] limits the perturbation, for minimum-norm attacks.

    >>> ThreatModel("linf", 8 / 255).norm
    'linf'
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in ATTACK_NORMS:
            raise InputError(f"norm must be one of {', '.join(ATTACK_NORMS)}, got {self.norm!r}")
        if not self.eps > 0:
            raise InputError(f"eps must be positive and in pixel units, got {self.eps:g}; for 8-bit images write 8/255")
        if self.norm == "l0" and self.eps < 1:
            raise InputError(f"eps in l0 is the number of channel values that may change, at least 1, got {self.eps:g}")


def widest(norm: Norm, pixels: int) -> float:
    """The largest distance between two images in [0, 1] with this many values.

    >>> widest("l2", 4)
    2.0
    """
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels), "l0": float(pixels)}[norm]


def require_width(threat: ThreatModel, pixels: int) -> None:
    """Raise InputError if a finite eps allows every image in [0, 1] with this many values, as an eps in 8-bit units
    does.

    >>> require_width(ThreatModel("l2", 0.5), 4)
    """
    farthest = widest(threat.norm, pixels)
    if not math.isfinite(threat.eps) or threat.eps <= farthest:
        return
    if threat.norm == "l0":
        raise InputError(
            f"eps {threat.eps:g} in l0 allows every image, for these have {pixels} values; take a smaller one"
        )
    meant = f"did you mean {threat.eps:g}/255?" if threat.eps <= 255 else "for 8-bit images write 8/255"
    raise InputError(
        f"eps {threat.eps:g} in {threat.norm} allows every image in [0, 1], whose largest distance is "
        f"{farthest:.4g}; eps is in pixel units: {meant}"
    )


def parse_number(text: str) -> float:
    """A number written as a decimal or as a fraction.

    >>> parse_number("8/255") == 8 / 255
    True
    """
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"cannot read {text!r} as a number; write a decimal such as 0.5 or a fraction such as 8/255"
        ) from error


def parse_numbers(text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers.

    >>> parse_numbers("0.5,1/4")
    (0.5, 0.25)
    """
    return tuple(parse_number(part) for part in text.split(","))
