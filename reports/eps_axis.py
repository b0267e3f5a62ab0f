"""The axis of eps: regular ticks, in multiples of 1/255 for linf on images, linear or logarithmic."""

import math
from typing import Literal

import altair as alt

from robustres.reports.formats import norm_text

ScaleType = Literal["linear", "log"]
# Admissible distances between ticks, in multiples of 1/255.
STEPS = (1, 2, 4, 8, 16, 32, 64)
MOST_TICKS = 9


def eps_axis(norm: str, start: float, end: float, scale: ScaleType = "linear") -> alt.X:
    """The x channel for the field eps from `start` to `end`."""
    title = f"eps ({norm_text(norm)}, pixels in [0, 1]{', log scale' if scale == 'log' else ''})"
    domain = alt.Scale(type=scale, nice=False, domain=[start, end])
    values = ticks(norm, start, end, scale)
    if values is None:
        axis = alt.Axis(format="~g", tickCount=6, labelFlush=False, labelOverlap="parity", labelSeparation=8)
        return alt.X("eps:Q", title=title, scale=domain, axis=axis)
    text = "datum.value === 0 ? '0' : format(datum.value * 255, '.3~g') + '/255'"
    axis = alt.Axis(values=values, labelExpr=text, labelFlush=False, labelOverlap="parity", labelSeparation=4)
    return alt.X("eps:Q", title=title, scale=domain, axis=axis)


def ticks(norm: str, start: float, end: float, scale: ScaleType) -> list[float] | None:
    """Ticks at multiples of 1/255 on a linf axis that spans at least a few of them; None leaves the ticks to the scale.

    >>> [round(255 * value) for value in ticks("linf", 0.0, 0.1, "linear")]
    [0, 4, 8, 12, 16, 20, 24]
    """
    levels = end * 255
    if norm != "linf" or levels < 2:
        return None
    if scale == "log":
        low = math.ceil(math.log2(max(start * 255, 2.0**-20)))
        powers = range(low, math.floor(math.log2(levels)) + 1)
        step = max(1, math.ceil(len(powers) / MOST_TICKS))
        return [2.0**power / 255 for power in reversed(powers[::-step])]
    step = next((step for step in STEPS if levels / step < MOST_TICKS), 128)
    return [level / 255 for level in range(0, math.floor(levels + 1e-9) + 1, step)]
