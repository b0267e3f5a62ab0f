"""Gradient flow: the effect of a shortcut on the gradient through equal layers."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.dynamics.measures.charts import horizontal, lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, exact, measured
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.dynamics.small_networks.stack import StackSettings, stack

DEPTHS = (10, 20, 50, 100, 200)
# A gradient that shrinks or grows by more than this factor over the depth is called vanishing or exploding.
FACTOR = 1e3
TITLE = "Shortcuts keep the gradient alive"
STATEMENT = (
    "Through L equal layers a plain network multiplies the gradient by about |a|^L, a residual one by about |1 + a|^L: "
    "the first vanishes, the second does not, and a branch scaled by 1/L keeps it near 1 at every depth."
)
SOURCE = "He et al. 2016 (identity mappings); Balduzzi et al. 2017 (shattered gradients); Zhang et al. 2019 (Fixup)"


def gradient_flow(data: Parts | None = None, *, depths: Sequence[int] = DEPTHS, samples: int = 64) -> Claim:
    """Ratio of the loss gradient at the first state to that at the last, by depth: plain, residual, residual with 1/L.

    The frame has one row per network and depth: ratio (measured, root mean square over the samples), upper and lower
    (bounds of the ratio for any input: products of K_l, of 1 + beta K_l and of 1 - beta K_l), and the scalar models.
    """
    images = (data or digits_parts()).test.first(samples)
    pixels = images.images[0].numel()
    # One seed: every network consists of the first layers of the deepest one.
    branches = [layer.branch_upper() for layer in stack(StackSettings(depth=max(depths), inputs=pixels)).layers]  # type: ignore[operator]
    rows = []
    for depth in depths:
        for name, kind, beta in (
            ("plain", "plain", 1.0),
            ("residual", "residual", 1.0),
            ("residual, F/L", "residual", 1 / depth),
        ):
            model = stack(StackSettings(kind=kind, depth=depth, beta=beta, inputs=pixels)).double()  # type: ignore[arg-type]
            norms = gradient_norms(model.states(images.images.double()), model.head, images.labels)
            lower, upper = _bounds(branches[:depth], kind, beta)
            rows.append(
                {"network": name, "depth": depth, "ratio": norms[0] / norms[-1], "lower": lower, "upper": upper}
            )
        for name, factor in (("scalar 0.5^L", 0.5), ("scalar 1.5^L", 1.5)):
            product = factor**depth
            rows.append({"network": name, "depth": depth, "ratio": product, "lower": product, "upper": product})
    frame = pd.DataFrame(rows)
    return Claim(
        "gradient-flow",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame, max(depths)),
        frame,
        specification(_picture(frame)),
        "Networks as PyTorch initialises them, loss on real digits; each point is the root mean square over the "
        "samples. The scalar models stand beside them as closed forms.",
    )


def _findings(frame: pd.DataFrame, deepest: int) -> tuple[Finding, ...]:
    def at(network: str) -> float:
        return float(frame[(frame["network"] == network) & (frame["depth"] == deepest)]["ratio"].iloc[0])

    networks = frame[~frame["network"].str.startswith("scalar")]
    over = float((networks["ratio"] / networks["upper"]).max())
    under = float((networks["ratio"] / networks["lower"].clip(lower=1e-300)).min())
    return (
        exact("0.5^20, scalar plain model", 0.5**20).at_most(1e-6, "the stated limit"),
        exact("1.5^20, scalar residual model", 1.5**20).at_least(3300.0, "the stated limit"),
        measured(f"plain, {deepest} layers: gradient ratio", at("plain")).at_most(1 / FACTOR, "vanishing"),
        measured(f"residual, {deepest} layers: gradient ratio", at("residual")).at_least(1.0, "not vanishing"),
        measured(f"residual F/L, {deepest} layers: gradient ratio", at("residual, F/L")).at_most(3.0, "near 1"),
        measured(f"residual F/L, {deepest} layers: its inverse", 1 / at("residual, F/L")).at_most(3.0, "near 1"),
        measured("largest measured ratio / its bound", over).at_most(1.0, "the bound of the same network"),
        measured("smallest measured ratio / its lower bound", under).at_least(1.0, "the bound of the same network"),
    )


def _picture(frame: pd.DataFrame) -> Any:
    order = ("plain", "residual", "residual, F/L", "scalar 0.5^L", "scalar 1.5^L")
    return alt.layer(
        lines(
            frame,
            "depth",
            "ratio",
            "network",
            order=order,
            x_title="layers L",
            y_title="gradient at the first state / at the last",
            y_log=True,
        ),
        horizontal(1.0),
    )


def gradient_norms(states: Sequence[Tensor], head: nn.Module, labels: Tensor) -> list[float]:
    """Root mean square, over the samples, of the norm of the loss gradient at every state."""
    loss = functional.cross_entropy(head(states[-1]), labels, reduction="sum")
    gradients = torch.autograd.grad(loss, list(states))
    return [float(gradient.flatten(1).square().sum(dim=1).mean().sqrt()) for gradient in gradients]


def _bounds(branches: Sequence[float], kind: str, beta: float) -> tuple[float, float]:
    """Lower and upper bound on the ratio, for any input and loss."""
    lower, upper = 1.0, 1.0
    for branch in branches:
        upper *= branch if kind == "plain" else 1 + beta * branch
        lower *= 0.0 if kind == "plain" else max(0.0, 1 - beta * branch)
    return lower * (1 - 1e-12), upper * (1 + 1e-12)
