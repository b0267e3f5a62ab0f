"""Total variation through the blocks of a given network, and its input gradients beside its certificates."""

from typing import Any

import altair as alt
import pandas as pd

from robustres.certify import certify
from robustres.data import ImageSet
from robustres.dynamics.demonstrations.smoothness import SOURCE, TITLE, margin_gradients, variation_rows
from robustres.dynamics.measures.charts import lines, rows, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, estimate, measured
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.variation import segments
from robustres.errors import InputError

STATEMENT = (
    "Along every path |1 - TV(f)| <= TV(x + f) <= 1 + TV(f); margin over input gradient estimates a "
    "radius, the certificate bounds it."
)


def smoothness_of(network: Dissection, data: ImageSet, *, points: int = 33, pairs: int = 6) -> Claim:
    """The total variation through each residual block of a given network, and its input gradients beside its
    certificates.

    The frame has rows of "variation" (block, path, branch, sum, lower, upper) and "sample" (gradient, first_order,
    certified), as in `smoothness`.
    """
    if not network.residual or len(data) < 2:
        raise InputError(
            "smoothness needs a network with residual blocks and at least two images to draw segments between"
        )
    paths = _variation_rows(network, data, points, min(pairs, len(data) // 2))
    frame = pd.DataFrame([*paths, *_sample_rows(network, data)])
    samples, variation = frame[frame["part"] == "sample"], frame[frame["part"] == "variation"]
    return Claim(
        "smoothness",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(samples, variation),
        frame,
        specification(_picture(samples, variation)),
        "Left: mean over segments between images. Right: one point per image.",
    )


def _variation_rows(network: Dissection, data: ImageSet, points: int, pairs: int) -> list[dict[str, Any]]:
    """The total variation through every residual block that keeps its shape."""
    path = segments(data.images[:pairs].double(), data.images[pairs : 2 * pairs].double(), points)
    states = network.states(path.flatten(0, 1))
    found: list[dict[str, Any]] = []
    for number, position in enumerate(network.residual, 1):
        x, y = (states[k].reshape(*path.shape[:2], *states[k].shape[1:]) for k in (position, position + 1))
        if x.shape == y.shape:
            block = {"part": "variation", "block": network.pieces[position].name, "position": number}
            found += [{**block, **row} for row in variation_rows(x, y - x)]
    return found


def _sample_rows(network: Dissection, data: ImageSet) -> list[dict[str, Any]]:
    """The input gradient of the margin and the certificate for every image."""
    last = len(network.pieces)
    margin, gradient = margin_gradients(lambda x: network.run(x, 0, last), data.images.double(), data.labels)
    certified = certify(network.module, data.images, report=network.report).radius
    return [
        {
            "part": "sample",
            "index": index,
            "gradient": float(gradient[index]),
            "certified": float(certified[index]),
            "first_order": float(margin[index] / gradient[index].clamp_min(1e-30)),
        }
        for index in range(len(data))
    ]


def _findings(samples: pd.DataFrame, variation: pd.DataFrame) -> tuple[Finding, ...]:
    findings = (
        measured("median norm of the margin's input gradient", samples["gradient"].median()),
        estimate("median margin / gradient", samples["first_order"].median()),
        bound("median certified radius", samples["certified"].median()),
    )
    if not len(variation):
        return findings
    over = (variation["sum"] - variation["upper"]).max()
    return (
        *findings,
        measured("TV(x + f) - (1 + TV(f)), largest", over).at_most(1e-9, "the bound, up to rounding"),
    )


def _picture(samples: pd.DataFrame, variation: pd.DataFrame) -> Any:
    chart = (
        alt.Chart(rows(samples[["first_order", "certified"]]))
        .mark_point()
        .encode(
            x=alt.X("first_order:Q", title="margin / gradient (estimate)"),
            y=alt.Y("certified:Q", title="certified radius"),
        )
    )
    if not len(variation):
        return chart.properties(width=420, height=260)
    names = {"branch": "TV(f)", "sum": "TV(x + f)", "lower": "|1 - TV(f)|", "upper": "1 + TV(f)"}
    mean = variation.groupby("position", as_index=False)[list(names)].mean()
    mean = mean.melt("position", var_name="what", value_name="value")
    mean["what"] = mean["what"].map(names)
    left = lines(
        mean,
        "position",
        "value",
        "what",
        order=list(names.values()),
        x_title="residual block",
        y_title="variation, path = 1",
        width=260,
    )
    return alt.hconcat(left, chart.properties(width=260, height=260))
