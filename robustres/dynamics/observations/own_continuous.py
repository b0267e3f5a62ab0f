"""The residual blocks of a given network as steps of an integrator, and the trajectories of samples through them."""

import math
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.continuous import SOURCE, trajectory_chart, trajectory_rows
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, measured
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.jacobian import LARGEST_STATE, jacobians
from robustres.errors import InputError

STATEMENT = (
    "A residual block that keeps its shape is one step of an integrator; small steps make the network close to a flow."
)


def continuous_of(network: Dissection, data: ImageSet, *, shown: int = 10) -> Claim:
    """The residual blocks of a given network as steps: their relative size, spectrum, and the trajectories of samples.

    The frame has rows of "step" (block, size = mean |F(x)| / |x|, radius = largest |eigenvalue of I + J_F| at the first
    image, NaN if the state has more than 1,024 numbers) and "trajectory" through the longest run of blocks of one
    shape.
    """
    states = network.states(data.images)
    same = [k for k in network.residual if states[k].shape == states[k + 1].shape]
    if not same:
        raise InputError("no residual block of this network keeps its shape, so it is not a sequence of steps")
    steps = pd.DataFrame([_step_row(network, position, n, states[position]) for n, position in enumerate(same, 1)])
    shape = states[same[0]].shape
    kept = [state.flatten(1)[:shown] for state in states if state.shape == shape]
    paths = pd.DataFrame(trajectory_rows(torch.stack(kept), data.labels))
    return Claim(
        "continuous",
        "The blocks of this network as steps",
        STATEMENT,
        SOURCE,
        _findings(steps),
        pd.concat([steps, paths], ignore_index=True),
        specification(_picture(steps, paths)),
        "Left: a step is small where the network is close to a flow. Right: paths of samples, two main components.",
    )


def _step_row(network: Dissection, position: int, number: int, x: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        step = network.branch(position, x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12)
    radius = math.nan
    if x[0].numel() <= LARGEST_STATE:
        radius = float(torch.linalg.eigvals(jacobians(network.piece(position), x[:1])[0]).abs().max())
    return {
        "part": "step",
        "block": network.pieces[position].name,
        "position": number,
        "size": float(step.mean()),
        "radius": radius,
    }


def _findings(steps: pd.DataFrame) -> tuple[Finding, ...]:
    findings = [measured("largest mean step |F(x)| / |x|", steps["size"].max())]
    if (known := steps["radius"].notna()).any():
        over = (steps["radius"] > 1).sum()
        findings.append(measured("blocks whose spectral radius exceeds 1 at the first image", over))
    if not known.all():
        findings.append(measured("blocks whose spectrum was not computed (state too large)", (~known).sum()))
    return tuple(findings)


def _picture(steps: pd.DataFrame, paths: pd.DataFrame) -> Any:
    chart = lines(
        steps.melt("position", ["size", "radius"], "what", "value").dropna(),
        "position",
        "value",
        "what",
        order=("size", "radius"),
        x_title="residual block",
        y_title="|F|/|x| and spectral radius",
        width=260,
        height=200,
    )
    return alt.hconcat(chart, trajectory_chart(paths, 260)).resolve_scale(color="independent", strokeDash="independent")
