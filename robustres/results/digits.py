"""Numbers with few digits, rounded to the side on which they remain true."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def rounded_text(value: float | None, *, up: bool, digits: int = 4, missing: str = "–") -> str:
    """A number with the given number of significant digits, rounded up (`up`) or down.

    >>> rounded_text(0.123449, up=True), rounded_text(0.123449, up=False), rounded_text(1e-5, up=True)
    ('0.1235', '0.1234', '1e-05')
    """
    if value is None or math.isnan(value):
        return missing
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    exact = Decimal(value)
    if not exact:
        return "0"
    nearest = f"{value:.{digits}g}"
    if float(nearest) == value:  # the decimal that this number represents
        return nearest
    place = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(place, rounding=ROUND_CEILING if up else ROUND_FLOOR)):.{digits}g}"


def share_text(value: float | None, *, up: bool | None = None) -> str:
    """A share in per cent with one decimal: rounded to nearest, or up (`up`), or down.

    >>> share_text(0.8126), share_text(0.69448, up=True), share_text(0.69448, up=False), share_text(-1e-9)
    ('81.3 %', '69.5 %', '69.4 %', '0.0 %')
    """
    if value is None or math.isnan(value):
        return "–"
    if up is None:
        return f"{round(100 * value, 1) + 0.0:.1f} %"  # adding 0.0 turns a rounded -0.0 into 0.0
    # A quotient of counts is not exact, so a value within one rounding of a decimal is taken as that decimal.
    tenths = 1000 * value
    near = round(tenths)
    exact = near if abs(tenths - near) < 1e-9 else math.ceil(tenths) if up else math.floor(tenths)
    return f"{exact / 10 + 0.0:.1f} %"
