"""Information preservation: how much of the input survives the depth, and when a block can be inverted."""

from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor

from robustres.data import ImageSet
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, exact, measured
from robustres.dynamics.measures.fit import fit
from robustres.dynamics.measures.inverse import fixed_point_inverse
from robustres.dynamics.measures.jacobian import jacobians
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.dynamics.small_networks.stack import Kind, Stack, StackSettings, stack

# Singular values below this share of the largest are considered lost in single precision.
RANK_TOLERANCE = 1e-6
BRANCH_LIMIT = 0.8
STATEMENT = (
    "A shortcut keeps what the branch throws away: with singular weights W = diag(1, 0, 0) the plain layers have rank "
    "1 and the residual ones I + W full rank at every depth; a branch with K_F < 1 makes the block invertible."
)
SOURCE = "Behrmann et al. 2019 (invertible residual networks); Banach's fixed-point theorem; Hardt and Ma 2017"
TITLE = "Shortcuts preserve information"
LINEAR = ("plain diag(1,0,0)", "residual diag(1,0,0)")
TRAINED = ("plain, trained", "residual, trained")


def information(data: Parts | None = None, *, depth: int = 8, epochs: int = 12, samples: int = 12) -> Claim:
    """Singular values and rank of the map from the first state, by depth, and the inverse for contractive branches.

    The frame has rows of three parts. "linear" (exact) and "trained" (median over samples, measured): smallest,
    largest, rank, size by position. "inverse": error (measured, largest over samples) and bound by iteration;
    "invertible": for each block, the lower bound 1 - K_F and the smallest singular value found.
    """
    parts = data or digits_parts()
    train, test = parts.train, parts.test.first(samples)
    rows = [row for name, start in zip(LINEAR, (0.0, 1.0), strict=True) for row in _linear_rows(name, start, depth)]
    kinds: tuple[Kind, Kind] = ("plain", "residual")
    for name, kind in zip(TRAINED, kinds, strict=True):
        model = _trained(StackSettings(kind, depth, inputs=parts.pixels, classes=parts.classes), train, epochs)
        rows += _spectrum_rows(name, model, test.images)
    settings = StackSettings("residual", depth, inputs=parts.pixels, classes=parts.classes)
    contractive = _trained(settings, train, epochs, limit=BRANCH_LIMIT)
    rows += _inverse_rows(contractive, test.images)
    frame = pd.DataFrame(rows)
    return Claim(
        "information",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame, depth),
        frame,
        specification(_picture(frame)),
        "Left: share of the directions that survive (singular values above 1e-6 of the largest), networks trained on "
        "digits, median over real samples. Right: running every block backwards by x <- y - F(x), largest error over "
        "the samples, beside the bound that the last step alone proves.",
    )


def _trained(settings: StackSettings, data: ImageSet, epochs: int, *, limit: float | None = None) -> Stack:
    model = stack(settings)

    def project() -> None:
        if limit is not None:
            for layer in model.layers:
                layer.limit_branch(limit)  # type: ignore[operator]

    fit(model, data.images, data.labels, epochs=epochs, learning_rate=2e-3, after_step=project)
    return model.double()


def _linear_rows(name: str, identity: float, depth: int) -> list[dict[str, Any]]:
    factors = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) + identity
    return [spectrum_row("linear", name, layers, factors**layers) for layers in range(depth + 1)]


def _spectrum_rows(name: str, model: Stack, images: Tensor) -> list[dict[str, Any]]:
    start = model.start(images.double()).detach()
    rows = []
    product = torch.eye(start.shape[1], dtype=torch.float64).expand(len(start), -1, -1)
    state = start
    for position, layer in enumerate([None, *model.layers]):
        if layer is not None:
            product = jacobians(layer, state) @ product
            state = layer(state).detach()
        values = torch.linalg.svdvals(product)
        found = [spectrum_row("trained", name, position, sample) for sample in values]
        rows.append(
            {
                **found[0],
                **{
                    key: float(pd.Series([row[key] for row in found]).median())
                    for key in ("smallest", "largest", "rank")
                },
            }
        )
    return rows


def spectrum_row(part: str, name: str, position: int, values: Tensor) -> dict[str, Any]:
    rank = int((values > RANK_TOLERANCE * values.max()).sum())
    return {
        "part": part,
        "network": name,
        "position": position,
        "smallest": float(values.min()),
        "largest": float(values.max()),
        "rank": rank,
        "size": len(values),
    }


def _inverse_rows(model: Stack, images: Tensor) -> list[dict[str, Any]]:
    states = [state.detach() for state in model.states(images.double())]
    rows, traces = [], []
    for position, layer in enumerate(model.layers):
        branch: Callable[[Tensor], Tensor] = layer.branch  # type: ignore[assignment]
        contraction = layer.branch_upper()  # type: ignore[operator]
        smallest = float(torch.linalg.svdvals(jacobians(layer, states[position])).min())
        rows.append(
            {
                "part": "invertible",
                "network": "residual, K_F < 1",
                "position": position + 1,
                "smallest": smallest,
                "bound": 1 - contraction,
                "contraction": contraction,
            }
        )
        trace = fixed_point_inverse(branch, states[position + 1], contraction, truth=states[position])
        traces.append(trace.assign(block=position))
    worst = pd.concat(traces).groupby("iteration", as_index=False)[["error", "bound"]].max()
    for record in worst.to_dict("records"):
        rows.append(
            {
                "part": "inverse",
                "network": "residual, K_F < 1",
                "position": record["iteration"],
                "error": record["error"],
                "bound": record["bound"],
            }
        )
    return rows


def _findings(frame: pd.DataFrame, depth: int) -> tuple[Finding, ...]:
    def last(name: str, column: str) -> float:
        chosen = frame[(frame["network"] == name) & (frame["position"] == depth)]
        return float(chosen[column].iloc[0])

    blocks = frame[frame["part"] == "invertible"]
    inverse = frame[frame["part"] == "inverse"]
    size = last(TRAINED[1], "size")
    return (
        exact("rank of diag(1,0,0)^L", last(LINEAR[0], "rank")).at_most(1.0, "the closed form"),
        exact("rank of (I + diag(1,0,0))^L", last(LINEAR[1], "rank")).at_least(3.0, "the closed form"),
        measured("rank through the plain trained network", last(TRAINED[0], "rank")).at_most(
            size / 2, "half of the state"
        ),
        measured("rank through the residual trained network", last(TRAINED[1], "rank")).at_least(
            size - 1, "all directions but one"
        ),
        bound("largest K_F of the contractive blocks", blocks["contraction"].max()).at_most(1 - 1e-3, "invertible"),
        measured(
            "smallest singular value minus its lower bound 1 - K_F", (blocks["smallest"] - blocks["bound"]).min()
        ).at_least(0.0, "the bound"),
        measured("error of the inverse, last iteration", inverse["error"].iloc[-1]).at_most(1e-8, "tolerance"),
        measured("largest error / its bound", (inverse["error"] / inverse["bound"]).max()).at_most(
            1.0, "a-posteriori bound"
        ),
    )


def _picture(frame: pd.DataFrame) -> Any:
    ranks = frame[frame["part"].isin(["linear", "trained"])].copy()
    ranks["share"] = ranks["rank"] / ranks["size"]
    left = lines(
        ranks,
        "position",
        "share",
        "network",
        order=(*TRAINED, *LINEAR),
        x_title="layers",
        y_title="directions that survive",
        y_format=".0%",
        width=300,
    )
    inverse = frame[frame["part"] == "inverse"].melt("position", ["error", "bound"], "what", "value")
    right = lines(
        inverse,
        "position",
        "value",
        "what",
        order=("error", "bound"),
        x_title="iterations",
        y_title="distance to the true input",
        y_log=True,
        points=False,
        width=260,
    )
    return alt.hconcat(left, right).resolve_scale(color="independent", strokeDash="independent")
