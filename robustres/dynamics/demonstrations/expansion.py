"""Jacobians: expansion of real samples by each block beside its certificate, and the effect of scaling its terms."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import torch

from robustres.certify import certify, lipschitz
from robustres.data import ImageSet
from robustres.dynamics.measures.charts import COLOURS, horizontal, lines, rows, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, measured
from robustres.dynamics.measures.fit import accuracy, fit
from robustres.dynamics.measures.jacobian import jacobians
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.dynamics.small_networks.stack import Layer, Stack, StackSettings, stack

TITLE = "What a block stretches, and what it may stretch"
STATEMENT = (
    "At every sample ||I + J_F|| stays below the block's certificate, which stays below 1 + K_F; a smaller branch "
    "certifies more, and at depth 100 it is what keeps the network trainable."
)
SOURCE = "Szegedy et al. 2014 (products of norms); Zhang, Dauphin and Ma 2019 (Fixup); De and Smith 2020 (SkipInit)"
# (alpha, beta) of the blocks alpha x + beta F(x).
SCALES = ((1.0, 1.0), (1.0, 0.3), (1.0, 0.1), (0.9, 1.0), (0.5, 1.0), (0.5, 0.1))
DEEP = 100


def expansion(
    data: Parts | None = None,
    *,
    depth: int = 4,
    width: int = 32,
    epochs: int = 12,
    samples: int = 24,
    eps: float = 0.1,
    scales: Sequence[tuple[float, float]] = SCALES,
    deep: int = DEEP,
    deep_epochs: int = 4,
) -> Claim:
    """Jacobian norms of a trained network by block and sample, and a sweep of alpha and beta at two depths.

    The frame has rows of two parts. "block": block, sample, stretch (largest singular value of the block's Jacobian
    there, a lower estimate of its constant), upper (joint bound), textbook (1 + K_F), grown and grown_upper (the same
    for everything from the first state on). "sweep": alpha, beta, accuracy, certified (share correct with radius >=
    eps, from bounds), upper (product over the blocks, bound), deep_accuracy (test accuracy with `deep` layers after a
    short training; NaN outputs count by the class that argmax gives).
    """
    parts = data or digits_parts()
    sizes: dict[str, Any] = {"inputs": parts.pixels, "classes": parts.classes}
    model = stack(StackSettings("residual", depth, width=width, **sizes))
    fit(model, parts.train.images, parts.train.labels, epochs=epochs)
    table = _block_rows(model.double(), parts.test.first(samples))
    for alpha, beta in scales:
        shallow = stack(StackSettings("residual", depth, width=width, alpha=alpha, beta=beta, **sizes))
        fit(shallow, parts.train.images, parts.train.labels, epochs=epochs)
        row = {"part": "sweep", "alpha": alpha, "beta": beta, **_certified(shallow, parts.test, eps)}
        tower = stack(StackSettings("residual", deep, width=16, alpha=alpha, beta=beta, **sizes))
        fit(tower, parts.train.images, parts.train.labels, epochs=deep_epochs, batch_size=128)
        table.append({**row, "deep_accuracy": accuracy(tower, parts.test.images, parts.test.labels)})
    frame = pd.DataFrame(table)
    return Claim(
        "jacobians",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame),
        frame,
        specification(_picture(frame, eps, deep)),
        "Left: each block at real digits (points, estimates from below) under its joint and textbook bounds. Right: "
        f"share certified at {eps:g} and accuracy at depth {deep} when blocks are alpha x + beta F(x).",
    )


def _block_rows(model: Stack, test: ImageSet) -> list[dict[str, Any]]:
    states = [state.detach() for state in model.states(test.images.double())]
    grown = torch.eye(states[0].shape[1], dtype=torch.float64).expand(len(test), -1, -1)
    found, grown_upper = [], 1.0
    for block, (layer, x) in enumerate(zip(model.layers, states, strict=False), 1):
        assert isinstance(layer, Layer)
        own = jacobians(layer, x)
        grown = own @ grown
        upper = layer.upper()
        grown_upper *= upper
        textbook = layer.alpha + layer.beta * layer.branch_upper()
        for sample, (value, total) in enumerate(
            zip(largest_singular_values(own), largest_singular_values(grown), strict=True)
        ):
            found.append(
                {
                    "part": "block",
                    "block": block,
                    "sample": sample,
                    "stretch": value,
                    "upper": upper,
                    "textbook": textbook,
                    "grown": total,
                    "grown_upper": grown_upper,
                }
            )
    return found


def largest_singular_values(matrices: torch.Tensor) -> list[float]:
    return [float(value) for value in torch.linalg.matrix_norm(matrices, ord=2)]


def _certified(model: Stack, test: ImageSet, eps: float) -> dict[str, float]:
    report = lipschitz(model, test.image_shape, lower_steps=0)
    certificates = certify(model, test.images, report=report)
    correct = certificates.prediction == test.labels
    upper = math.prod(row.upper for row in report.residual_blocks)
    return {
        "accuracy": float(correct.double().mean()),
        "certified": float((correct & (certificates.radius >= eps)).double().mean()),
        "upper": upper,
    }


def _findings(frame: pd.DataFrame) -> tuple[Finding, ...]:
    blocks, sweep = frame[frame["part"] == "block"], frame[frame["part"] == "sweep"].set_index(["alpha", "beta"])
    expanding = blocks.groupby("block")["stretch"].max() > 1
    findings = [
        measured("stretch / joint bound, largest", (blocks["stretch"] / blocks["upper"]).max()).at_most(
            1.0, "the certificate"
        ),
        bound("joint / textbook bound, largest", (blocks["upper"] / blocks["textbook"]).max()).at_most(
            1.0 + 1e-9, "the textbook bound"
        ),
        measured(
            "growth from the first state / product of bounds, largest", (blocks["grown"] / blocks["grown_upper"]).max()
        ).at_most(1.0, "the certificate"),
        measured("blocks that expand some sample", expanding.sum()).at_least(1.0, "an ordinary network expands"),
    ]
    if {(1.0, 1.0), (1.0, 0.1)} <= set(sweep.index):
        full, small = ({key: sweep[key][scale] for key in sweep} for scale in ((1.0, 1.0), (1.0, 0.1)))
        findings += [
            bound("certified share with beta = 0.1", small["certified"]).at_least(
                float(full["certified"]) + 0.05, "the share with beta = 1, plus 0.05"
            ),
            bound("product of bounds with beta = 0.1", small["upper"]).at_most(
                full["upper"], "the product with beta = 1"
            ),
            measured("accuracy at the large depth with beta = 0.1", small["deep_accuracy"]).at_least(0.8, "trainable"),
        ]
    if (0.5, 0.1) in sweep.index:
        findings.append(
            measured(
                "accuracy at the large depth with alpha = 0.5, beta = 0.1", sweep["deep_accuracy"][(0.5, 0.1)]
            ).at_most(0.3, "a shortcut that shrinks loses the signal")
        )
    return tuple(findings)


def _picture(frame: pd.DataFrame, eps: float, deep: int) -> Any:
    names = {"certified": f"certified at {eps:g}", "accuracy": "accuracy", "deep_accuracy": f"accuracy, depth {deep}"}
    bars = scale_bars(
        frame[frame["part"] == "sweep"], names, [COLOURS[2], COLOURS[1], COLOURS[0]], "share of test digits"
    )
    return alt.hconcat(stretch_chart(frame[frame["part"] == "block"]), bars).resolve_scale(
        color="independent", strokeDash="independent"
    )


def scale_bars(sweep: pd.DataFrame, names: dict[str, str], colours: list[str], title: str) -> Any:
    """Bars of shares by (alpha, beta); names: of the columns to show, in order."""
    scales = [f"{alpha:g} x + {beta:g} F" for alpha, beta in zip(sweep["alpha"], sweep["beta"], strict=True)]
    shown = sweep.assign(scale=scales).melt("scale", list(names), "what", "value")
    shown["what"] = shown["what"].map(names)
    share = alt.X("value:Q", title=title, axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    colour = alt.Color(
        "what:N",
        scale=alt.Scale(domain=list(names.values()), range=colours),
        legend=alt.Legend(orient="bottom", title=None),
    )
    return (
        alt.Chart(rows(shown[["scale", "what", "value"]]))
        .mark_bar()
        .encode(
            y=alt.Y("scale:N", title=None, sort=list(dict.fromkeys(scales))),
            yOffset=alt.YOffset("what:N", sort=list(names.values())),
            x=share,
            color=colour,
        )
        .properties(width=260, height=260)
    )


def stretch_chart(blocks: pd.DataFrame) -> Any:
    points = (
        alt.Chart(rows(blocks[["block", "stretch"]]))
        .mark_point(size=16, opacity=0.5, color=COLOURS[1])
        .encode(
            x=alt.X("block:Q", title="block", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("stretch:Q", title="how much the block stretches"),
        )
    )
    names = {"upper": "bound used", "textbook": "textbook bound"}
    bounds = (
        blocks.groupby("block", as_index=False)[list(names)].first().melt("block", var_name="what", value_name="value")
    )
    bounds["what"] = bounds["what"].map(names)
    return alt.layer(
        horizontal(1.0),
        points,
        lines(
            bounds,
            "block",
            "value",
            "what",
            order=list(names.values()),
            x_title="block",
            y_title="how much the block stretches",
        ),
    ).properties(width=260, height=260)
