"""The contribution of each residual block of a given network: its size, its direction, and the cost of its removal."""

import math
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.correction import ROUNDING, SOURCE, mean_cosine, true_margin
from robustres.dynamics.measures.charts import horizontal, lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, measured
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.early_exit import exit_descent, exit_logits
from robustres.dynamics.measures.fit import share
from robustres.errors import InputError

STATEMENT = (
    "Whether each branch points at what the later blocks still add and where the loss falls, how the answers improve "
    "if the network stops after it, and what they become without it. Seen after the fact, not through training."
)


def correction_of(network: Dissection, data: ImageSet) -> Claim:
    """The size and direction of each residual block's branch in a given network, and the cost of removing the block.

    The frame has one row per residual block, measured on the images unless said otherwise: size, mean |F(x)| / |x|;
    alignment, mean cos(F(x), t - x), where t is the state of the same image after the last residual block of the stage
    (the blocks whose states have the same shape), so t - x is what the stage still adds (NaN if the shortcut is not the
    identity, 1 for the last block of the stage by definition); descent, mean cosine with minus the gradient of the loss
    when stopping before the block (NaN likewise); exit_accuracy and margin_gained when stopping after the block (later
    blocks are reduced to their shortcuts, the head is unchanged); accuracy_without and kept_without the block;
    kept_proven, the share for which the bound of the following part proves that the prediction does not change (a
    bound).
    """
    if not network.residual:
        raise InputError("this network has no residual block, so there is no branch to measure and no early exit")
    states = network.states(data.images)
    exits = exit_logits(network, states)
    frame = pd.DataFrame(
        [
            {
                "block": network.pieces[position].name,
                "position": number,
                **_direction(network, states, position, data.labels),
                **_exit(exits[number - 1], exits[number], data.labels),
                **_removal(network, states, position, data.labels),
            }
            for number, position in enumerate(network.residual, 1)
        ]
    )
    before = share(exits[0].argmax(dim=1) == data.labels)
    return Claim(
        "correction",
        "What each block adds, and what its removal costs",
        STATEMENT,
        SOURCE,
        _findings(frame, share(states[-1].argmax(dim=1) == data.labels), before),
        frame,
        specification(_picture(frame, before)),
        "Left: mean cosine of each branch with what the rest of its stage adds, blocks of one shape (1 for the last by "
        "definition; positive even for branches that agree on nothing, since each is part of that sum), and with the "
        "direction that lowers the loss of stopping there; missing where a block changes the shape. Middle: mean "
        "margin gained at the early exit. Right: answers if the network stops after the block (at 0: without any "
        "block) or leaves that block alone out. A block that is left out passes on its shortcut.",
    )


def _direction(network: Dissection, states: list[Tensor], position: int, labels: Tensor) -> dict[str, float]:
    """Size of the branch, and its cosines with the remaining correction and with descent of the exit's loss."""
    x = states[position]
    with torch.no_grad():
        branch = network.branch(position, x)
    row = {
        "size": float((_length(branch) / _length(x).clamp_min(1e-12)).mean()),
        "alignment": math.nan,
        "descent": math.nan,
    }
    if network.pieces[position].kind == "residual (identity)":
        row["descent"] = mean_cosine(branch, exit_descent(network, x, position, labels))
        row["alignment"] = mean_cosine(branch, states[_stage_end(network, states, position)] - x)
    return row


def _stage_end(network: Dissection, states: list[Tensor], position: int) -> int:
    """The state after the last residual block that can be reached from `position` without a change of shape."""
    end = position + 1
    for later in range(position + 1, len(network.pieces)):
        if states[later + 1].shape != states[position].shape:
            break
        if network.pieces[later].is_residual:
            end = later + 1
    return end


def _exit(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "margin_gained": float((true_margin(after, labels) - true_margin(before, labels)).mean()),
        "exit_accuracy": share(after.argmax(dim=1) == labels),
    }


@torch.no_grad()
def _removal(network: Dissection, states: list[Tensor], position: int, labels: Tensor) -> dict[str, float]:
    x, logits, last = states[position], states[-1], len(network.pieces)
    missing = network.run(network.skip(position, x), position + 1, last)
    # Without a linear head whose rows could be paired, two logits move apart by at most sqrt(2) times the bound.
    change = math.sqrt(2) * network.upper_from(position + 1) * _length(network.branch(position, x)) * ROUNDING
    top = logits.topk(2, dim=1).values
    kept, proven = missing.argmax(dim=1) == logits.argmax(dim=1), top[:, 0] - top[:, 1] > change
    return {
        "accuracy_without": share(missing.argmax(dim=1) == labels),
        "kept_without": share(kept),
        "kept_proven": share(proven),
        "proof_broken": int((proven & ~kept).sum()),
    }


def _length(values: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return length


def _findings(frame: pd.DataFrame, clean: float, before: float) -> tuple[Finding, ...]:
    ranked = frame.sort_values("accuracy_without")
    cheapest, dearest = ranked.iloc[-1], ranked.iloc[0]
    enough = frame[frame["exit_accuracy"] >= clean - 0.01].iloc[0]
    found = [
        measured("accuracy of the whole network", clean),
        measured("accuracy without any branch, every block passing on its shortcut", before),
        measured(f"residual blocks needed to come within 1 % of it (up to {enough['block']})", enough["position"]),
        measured(f"accuracy without {dearest['block']}, the block that is missed most", dearest["accuracy_without"]),
        measured(f"accuracy without {cheapest['block']}, the block that is missed least", cheapest["accuracy_without"]),
        measured("blocks that lower the mean margin at their exit", (frame["margin_gained"] < 0).sum()),
    ]
    if frame["descent"].notna().any():
        found.append(measured("smallest mean cosine with the descent of the exit's loss", frame["descent"].min()))
    if len(aligned := frame["alignment"][frame["alignment"] < 1 - 1e-9]):
        found.append(
            measured("smallest mean alignment cos(F(x), t - x), the last block of each stage aside", aligned.min())
        )
    broken = measured("samples that broke the proof", frame["proof_broken"].sum()).at_most(0.0, "the guarantee")
    return (*found, broken)


def _picture(frame: pd.DataFrame, before: float) -> Any:
    cosines = {"alignment": "remaining correction", "descent": "descent of the loss"}
    shares = {
        "exit_accuracy": "accuracy, stop after it",
        "accuracy_without": "accuracy without it",
        "kept_without": "answers kept without it",
        "kept_proven": "proven to be kept",
    }
    gained = frame.assign(what="margin gained")
    start = pd.DataFrame([{"position": 0, "what": shares["exit_accuracy"], "value": before}])
    panels = [
        _panel(_long(frame, cosines), list(cosines.values()), "mean cosine of the branch with"),
        _panel(gained.rename(columns={"margin_gained": "value"}), ["margin gained"], "mean margin gained"),
        _panel(pd.concat([start, _long(frame, shares)]), list(shares.values()), "share of samples", y_format=".0%"),
    ]
    for number in (0, 1):
        panels[number] = alt.layer(horizontal(0.0), panels[number])
    return alt.hconcat(*panels).resolve_scale(color="independent", strokeDash="independent")


def _long(frame: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    long = frame.melt("position", list(names), "what", "value")
    return long.assign(what=long["what"].map(names)).dropna()


def _panel(frame: pd.DataFrame, order: list[str], title: str, *, y_format: str | None = None) -> Any:
    return lines(
        frame[["position", "what", "value"]], "position", "value", "what",
        order=order, x_title="residual block", y_title=title, y_format=y_format, width=200,
    )  # fmt: skip
