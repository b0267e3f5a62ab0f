"""Gradient flow through a given network: vanishing, exploding, or neither."""

import math
from typing import Any

import pandas as pd
from torch import nn

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.gradient_flow import FACTOR, SOURCE, gradient_norms
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, measured
from robustres.dynamics.measures.dissection import Dissection

STATEMENT = (
    "The gradient of the loss at every piece of the network, and the most that the bounds of the pieces allow it to be."
)


def gradient_flow_of(network: Dissection, data: ImageSet) -> Claim:
    """Gradient flow through the pieces of a given network: whether the gradient vanishes, explodes or does neither.

    The frame has one row per state: gradient (measured) and upper (a bound on it: the bound of the rest of the network
    times the gradient at the logits).
    """
    state = data.images.double().requires_grad_()
    states = [state]
    for position in range(len(network.pieces)):
        states.append(network.run(states[-1], position, position + 1))
    norms = gradient_norms(states, nn.Identity(), data.labels)
    names = ["input", *(piece.name for piece in network.pieces)]
    frame = pd.DataFrame(
        {
            "position": range(len(states)),
            "after": names,
            "gradient": norms,
            "upper": [norms[-1] * network.upper_from(position) for position in range(len(states))],
        }
    )
    ratio = norms[0] / norms[-1] if norms[-1] > 0 else math.nan
    return Claim(
        "gradient-flow",
        f"The gradient through this network: {_verdict(ratio)}",
        STATEMENT,
        SOURCE,
        (
            measured(f"gradient at the input / at the logits ({_verdict(ratio)})", ratio).at_most(
                network.upper_from(0), "the bound of the network"
            ),
        ),
        frame,
        specification(_picture(frame)),
        "Right is the output, left the input. The bound holds for every image.",
    )


def _picture(frame: pd.DataFrame) -> Any:
    return lines(
        frame.melt(["position", "after"], ["gradient", "upper"], "what", "value").replace(
            {"what": {"gradient": "measured", "upper": "bound"}}
        ),
        "position",
        "value",
        "what",
        order=("measured", "bound"),
        x_title="pieces passed from the input",
        y_title="gradient of the loss (root mean square)",
        y_log=True,
    )


def _verdict(ratio: float) -> str:
    if ratio < 1 / FACTOR:
        return "vanishing"
    return "exploding" if ratio > FACTOR else "neither vanishing nor exploding"
