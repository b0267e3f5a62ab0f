"""The branch as a correction: blocks point towards the remaining error, each adds margin, and most are dispensable."""

import math
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from robustres.data import ImageSet
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, measured
from robustres.dynamics.measures.fit import fit, share
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.dynamics.small_networks.stack import Layer, Stack, StackSettings, stack

TITLE = "Each branch corrects what is left"
STATEMENT = (
    "In a trained residual network each branch points at the remaining error, cos(F(x), t - x) > 0, the answer "
    "improves from block to block as in boosting, and a removed block is missed by few samples."
)
SOURCE = (
    "Veit, Wilber and Belongie 2016; Jastrzebski et al. 2018 (iterative inference); Huang et al. 2018 (BoostResNet)"
)
# A margin must exceed the largest change by removal by more than rounding.
ROUNDING = 1 + 1e-9


def correction(data: Parts | None = None, *, depth: int = 4, epochs: int = 12, samples: int = 360) -> Claim:
    """Alignment, margin, early exits and removal of each block of a network, at epochs 0 and 1, after a third, and at
    the end.

    The frame has one row per epoch and block, all measured on test images: alignment, the mean of cos(F(x), t - x),
    where t is the mean last state of the sample's class over the training images; descent, the mean cosine with minus
    the gradient of the early exit's loss; margin_gained, the mean change of the true class's margin at the exit;
    exit_accuracy after the block (the shared head on its output); accuracy_without the block; kept_without, the share
    whose prediction does not change; kept_proven, the share for which a Lipschitz bound of the following part proves
    this (only at the last epoch).
    """
    parts = data or digits_parts()
    test = parts.test.first(samples)
    model = stack(StackSettings("residual", depth, inputs=parts.pixels, classes=parts.classes))
    looks = {0, 1, epochs // 3, epochs}
    rows: list[dict[str, Any]] = []

    def look(epoch: int) -> None:
        if epoch in looks:
            for row in _rows(model, parts.train, test, proven=epoch == epochs):
                rows.append({"epoch": epoch, **row})

    fit(model, parts.train.images, parts.train.labels, epochs=epochs, learning_rate=2e-3, on_epoch=look)
    frame = pd.DataFrame(rows)
    return Claim(
        "correction",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame, epochs),
        frame,
        specification(_picture(frame)),
        "Left: mean cosine between a branch and the remaining error t - x, through training; t is the mean last "
        "state of the class, which the branches themselves make up, so it is positive even before training. Middle: "
        "cosine with the direction that lowers the loss of stopping there, which training alone makes positive. Right, "
        "after training: accuracy if the network stops after a block, or if that block alone is left out.",
    )


@torch.no_grad()
def _rows(model: Stack, train: ImageSet, test: ImageSet, *, proven: bool) -> list[dict[str, Any]]:
    layers = [layer for layer in model.layers if isinstance(layer, Layer)]
    targets = class_means(model.states(train.images)[-1], train.labels)[test.labels]
    states = model.states(test.images)
    logits = model.head(states[-1])
    uppers = [layer.upper() for layer in layers] if proven else [math.inf] * len(layers)
    rows = []
    for position, x in enumerate(states[:-1]):
        correction = states[position + 1] - x
        without = x
        for later in layers[position + 1 :]:
            without = later(without)
        missing = model.head(without)
        change = torch.linalg.vector_norm(correction, dim=1) * math.prod(uppers[position + 1 :])
        margins = [true_margin(model.head(state), test.labels) for state in (x, states[position + 1])]
        answers = logits.argmax(dim=1)
        rows.append(
            {
                "block": position + 1,
                "alignment": mean_cosine(correction, targets - x),
                "descent": mean_cosine(correction, -_exit_gradient(model, x, test.labels)),
                "margin_gained": float((margins[1] - margins[0]).mean()),
                "exit_accuracy": share(model.head(states[position + 1]).argmax(dim=1) == test.labels),
                "accuracy_without": share(missing.argmax(dim=1) == test.labels),
                "kept_without": share(missing.argmax(dim=1) == answers),
                "kept_proven": share(pairwise_reach(logits, model.head.weight) > change * ROUNDING)
                if proven
                else math.nan,
                "proof_broken": int(
                    (
                        (pairwise_reach(logits, model.head.weight) > change * ROUNDING)
                        & (missing.argmax(dim=1) != answers)
                    ).sum()
                ),
            }
        )
    return rows


def class_means(states: Tensor, labels: Tensor) -> Tensor:
    """(classes, ...): the mean state of every class."""
    return torch.stack([states[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])


def true_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,): the label's logit minus the largest other one."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)


def pairwise_reach(logits: Tensor, head: Tensor) -> Tensor:
    """(N,): smallest move of the state before a linear head (classes, D) that can change the prediction."""
    answer = logits.argmax(dim=1)
    gap = logits.gather(1, answer[:, None]) - logits
    distance = torch.linalg.vector_norm(head[answer][:, None] - head[None], dim=2)
    own = functional.one_hot(answer, logits.shape[1]).bool()
    reach: Tensor = (gap / distance.masked_fill(own, 1.0)).masked_fill(own, math.inf).amin(dim=1)
    return reach


def _exit_gradient(model: Stack, state: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        loss = functional.cross_entropy(model.head(state), labels, reduction="sum")
        gradient: Tensor = torch.autograd.grad(loss, state)[0]
        return gradient


def mean_cosine(left: Tensor, right: Tensor) -> float:
    """Mean over the samples of the cosine between two tensors (N, ...)."""
    return float(functional.cosine_similarity(left.flatten(1), right.flatten(1), dim=1).mean())


def _findings(frame: pd.DataFrame, epochs: int) -> tuple[Finding, ...]:
    first, last = frame[frame["epoch"] == 0], frame[frame["epoch"] == epochs]
    exits = last["exit_accuracy"].to_numpy()
    return (
        measured("smallest mean alignment cos(F(x), t - x) after training", last["alignment"].min()).at_least(
            0.05, "clearly positive"
        ),
        measured("smallest mean cosine with the negative loss gradient after training", last["descent"].min()).at_least(
            0.15, "clearly positive"
        ),
        measured(
            "largest mean cosine with the negative loss gradient before training", first["descent"].abs().max()
        ).at_most(0.1, "no direction yet"),
        measured("smallest mean margin gained by a block", last["margin_gained"].min()).at_least(
            0.0, "no block harms on average"
        ),
        measured("accuracy after the last block", exits[-1]).at_least(exits[0], "accuracy after the first block"),
        measured(
            "share that keeps its answer without the block that is missed least", last["kept_without"].max()
        ).at_least(0.8, "most samples"),
        measured(
            "share proven to keep it, smallest slack to the measured share",
            (last["kept_without"] - last["kept_proven"]).min(),
        ).at_least(0.0, "the proven share"),
        measured("samples that broke the proof", last["proof_broken"].sum()).at_most(0.0, "the guarantee"),
    )


def _picture(frame: pd.DataFrame) -> Any:
    named = frame.assign(when=[f"epoch {epoch}" for epoch in frame["epoch"]])
    order = list(dict.fromkeys(named["when"]))
    left = [
        lines(named, "block", column, "when", order=order, x_title="block", y_title=title, width=170)
        for column, title in (
            ("alignment", "mean cos(F(x), t - x)"),
            ("descent", "mean cos(F(x), -gradient of the loss)"),
        )
    ]
    names = {
        "exit_accuracy": "stop after it",
        "accuracy_without": "leave it out",
        "kept_without": "answers kept without it",
        "kept_proven": "proven to be kept",
    }
    last = frame[frame["epoch"] == frame["epoch"].max()].melt("block", list(names), "what", "value")
    last["what"] = last["what"].map(names)
    right = lines(
        last,
        "block",
        "value",
        "what",
        order=list(names.values()),
        x_title="block",
        y_title="share of test samples",
        y_format=".0%",
        width=230,
    )
    return alt.hconcat(*left, right).resolve_scale(color="independent", strokeDash="independent")
