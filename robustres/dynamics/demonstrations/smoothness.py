"""Smoothness: how much a block can roughen a path, and what the input gradient implies about robustness."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor

from robustres.attacks import make_attack
from robustres.certify import certify
from robustres.data import ImageSet
from robustres.dynamics.demonstrations.correction import true_margin
from robustres.dynamics.measures.charts import COLOURS, rows, specification
from robustres.dynamics.measures.claim import Claim, Finding, measured
from robustres.dynamics.measures.fit import accuracy, fit
from robustres.dynamics.measures.variation import segments, total_variation
from robustres.dynamics.small_networks.highway_radius import highway_radius
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.dynamics.small_networks.stack import Stack, StackSettings, stack
from robustres.threat import ThreatModel

TITLE = "Blocks roughen a path by no more than their branch"
STATEMENT = (
    "Along any path |1 - TV(f)| <= TV(x + f) <= 1 + TV(f), the path's own variation being 1; and across samples the "
    "input gradient, taken with the margin, tells how far the nearest adversarial example is."
)
SOURCE = (
    "the triangle inequality; Ross and Doshi-Velez 2018 (input gradients); Moosavi-Dezfooli et al. 2016 (margin over "
    "gradient); Srivastava, Greff and Schmidhuber 2015 (highway networks)"
)
NETWORKS = {
    "plain": StackSettings("plain", 4),
    "highway": StackSettings("highway", 4),
    "residual": StackSettings("residual", 4),
    "scaled": StackSettings("residual", 4, beta=0.25),
}
# Budgets of the attack in pixel units; the smallest successful one is an upper bound on the true radius.
LADDER = tuple(round(0.1 * 1.25**step, 4) for step in range(16))


def smoothness(
    data: Parts | None = None, *, width: int = 32, epochs: int = 12, samples: int = 80, pairs: int = 24, steps: int = 12
) -> Claim:
    """Total variation per block, and gradient and attacked distance per sample, for four kinds of networks.

    The frame has rows of two parts. "variation": network, block, path (number of the segment), branch, sum, lower and
    upper bound, all divided by the variation of the block's input path. "sample": network, gradient (norm of the
    margin's input gradient), first_order (margin / gradient, an estimate), attacked (distance of an example found, an
    upper bound of the radius; infinite if none), certified (lower bound on the radius; for highway networks, which have
    no constant on all inputs, from intervals on a ball within [0, 1]).
    """
    parts = data or digits_parts()
    test = parts.test.first(samples)
    tables: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for name, sizes in NETWORKS.items():
        model = stack(replace(sizes, width=width, inputs=parts.pixels, classes=parts.classes))
        fit(model, parts.train.images, parts.train.labels, epochs=epochs)
        model.double().eval()
        variation = _variation_rows(name, model, test.images[:pairs], test.images[pairs : 2 * pairs])
        points = _sample_rows(name, model, test, steps)
        tables += variation + points
        findings.append(
            measured(f"test accuracy, {name}", accuracy(model, parts.test.images.double(), parts.test.labels)).at_least(
                0.85, "the network learned"
            )
        )
    frame = pd.DataFrame(tables)
    return Claim(
        "smoothness",
        TITLE,
        STATEMENT,
        SOURCE,
        (*_findings(frame), *findings),
        frame,
        specification(_picture(frame)),
        "Left: each point is one block and one segment between two test digits; it must lie between the dashed lines. "
        "Right: each point is a test digit; margin over gradient against the distance of an example found.",
    )


def _variation_rows(name: str, model: Stack, starts: Tensor, ends: Tensor, points: int = 101) -> list[dict[str, Any]]:
    path = segments(starts.double(), ends.double(), points)
    states = [state.detach().reshape(*path.shape[:2], -1) for state in model.states(path.flatten(0, 1))]
    found = []
    for block, (x, y) in enumerate(pairwise(states), 1):
        found += [{"part": "variation", "network": name, "block": block, **row} for row in variation_rows(x, y - x)]
    return found


def variation_rows(path: Tensor, branch: Tensor) -> list[dict[str, Any]]:
    """For each path: the variations of branch and sum, divided by that of the path, and the bounds of the latter."""
    own, added, total = (total_variation(values) for values in (path, branch, path + branch))
    return [
        {
            "path": number,
            "branch": float(f / x),
            "sum": float(y / x),
            "lower": abs(1 - float(f / x)),
            "upper": 1 + float(f / x),
        }
        for number, (x, f, y) in enumerate(zip(own, added, total, strict=True))
    ]


def margin_gradients(model: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin of the label (N,), and the l2 norm (N,) of its gradient with respect to the pixels."""
    x = images.detach().requires_grad_()
    margin = true_margin(model(x), labels)
    gradient = torch.autograd.grad(margin.sum(), x)[0]
    return margin.detach(), torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def attacked_distance(model: torch.nn.Module, data: ImageSet, dtype: torch.dtype, *, steps: int) -> Tensor:
    """(N,): l2 distance of the nearest adversarial example that PGD found over the budgets; infinite if none."""
    best = torch.full((len(data),), math.inf, dtype=torch.float64)
    for eps in LADDER:
        open_ = torch.isinf(best).nonzero()[:, 0]
        if not len(open_):
            break
        result = make_attack("pgd", ThreatModel("l2", eps), steps=steps)(
            model, data.images[open_].to(dtype), data.labels[open_]
        )
        best[open_] = torch.where(result.fooled, result.distance.double(), best[open_])
    return best


def _sample_rows(name: str, model: Stack, test: ImageSet, steps: int) -> list[dict[str, Any]]:
    margin, gradient = margin_gradients(model, test.images.double(), test.labels)
    attacked = attacked_distance(model, test, torch.float64, steps=steps)
    certified = highway_radius(model, test.images) if name == "highway" else certify(model, test.images).radius
    return [
        {
            "part": "sample",
            "network": name,
            "index": index,
            "margin": float(margin[index]),
            "gradient": float(gradient[index]),
            "first_order": float(margin[index] / gradient[index]),
            "attacked": float(attacked[index]),
            "certified": float(certified[index]),
        }
        for index in range(len(test))
        if margin[index] > 0
    ]


def rank_correlation(left: pd.Series, right: pd.Series) -> float:
    """Spearman's rank correlation of the finite pairs; NaN for fewer than three."""
    kept = pd.DataFrame({"left": left, "right": right}).replace([math.inf, -math.inf], math.nan).dropna()
    return float(kept["left"].rank().corr(kept["right"].rank())) if len(kept) > 2 else math.nan


def _findings(frame: pd.DataFrame) -> list[Finding]:
    variation, points = frame[frame["part"] == "variation"], frame[frame["part"] == "sample"]
    findings = [
        measured("TV(x + f) - (1 + TV(f)), largest", (variation["sum"] - variation["upper"]).max()).at_most(
            1e-9, "the bound, up to rounding"
        ),
        measured("|1 - TV(f)| - TV(x + f), largest", (variation["lower"] - variation["sum"]).max()).at_most(
            1e-9, "the lower bound, up to rounding"
        ),
        measured(
            "certified radius - attacked distance, largest", (points["certified"] - points["attacked"]).max()
        ).at_most(0.0, "the sandwich"),
    ]
    for name in NETWORKS:
        own = points[points["network"] == name]
        findings.append(
            measured(
                f"rank correlation of margin / gradient with attacked distance, {name}",
                rank_correlation(own["first_order"], own["attacked"]),
            ).at_least(0.6, "a strong relation")
        )
    medians = points.groupby("network")[["gradient", "attacked"]].median()
    findings.append(
        measured(
            "rank correlation over the networks, median gradient with median distance",
            rank_correlation(medians["gradient"], medians["attacked"]),
        )
    )
    return findings


def _picture(frame: pd.DataFrame) -> Any:
    colour = alt.Color(
        "network:N",
        scale=alt.Scale(domain=list(NETWORKS), range=list(COLOURS[:4])),
        legend=alt.Legend(orient="bottom", title=None),
    )
    shape = alt.Shape(
        "network:N",
        scale=alt.Scale(domain=list(NETWORKS), range=["square", "diamond", "circle", "triangle-up"]),
        legend=alt.Legend(orient="bottom", title=None),
    )
    variation = frame[frame["part"] == "variation"]
    points = (
        alt.Chart(rows(variation[["network", "branch", "sum"]]))
        .mark_point(size=18, opacity=0.6)
        .encode(
            x=alt.X("branch:Q", title="TV(f), path = 1", scale=alt.Scale(type="log", nice=False)),
            y=alt.Y("sum:Q", title="TV(x + f)", scale=alt.Scale(type="log", nice=False)),
            color=colour,
            shape=shape,
        )
    )
    low, high = variation["branch"].min(), variation["branch"].max()
    grid = pd.DataFrame({"branch": [low * (high / low) ** (step / 80) for step in range(81)]})
    grid = grid.assign(
        lower=(1 - grid["branch"]).abs().clip(lower=float(variation["sum"].min()) / 2), upper=1 + grid["branch"]
    )
    limit = [
        alt.Chart(rows(grid)).mark_line(strokeDash=[4, 3], color="#56606b").encode(x="branch:Q", y=f"{side}:Q")
        for side in ("lower", "upper")
    ]
    reached = frame[(frame["part"] == "sample") & frame["attacked"].lt(math.inf)]
    right = (
        alt.Chart(rows(reached[["network", "first_order", "attacked"]]))
        .mark_point(size=18, opacity=0.6)
        .encode(
            x=alt.X("first_order:Q", title="margin / gradient (estimate)"),
            y=alt.Y("attacked:Q", title="distance of the example found"),
            color=colour,
            shape=shape,
        )
    )
    return alt.hconcat(
        alt.layer(*limit, points).properties(width=280, height=260), right.properties(width=280, height=260)
    )
