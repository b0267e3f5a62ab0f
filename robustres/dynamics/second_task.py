"""A second task without forgetting the first: adapters under a budget, and the samples that provably stay."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustres.data import ImageSet
from robustres.dynamics.adapter import Adapted
from robustres.dynamics.charts import lines, specification
from robustres.dynamics.claim import Claim, Finding
from robustres.dynamics.correction import pairwise_reach
from robustres.dynamics.fit import fit, share
from robustres.dynamics.flow import FlowNet, flow_net
from robustres.dynamics.parts import Parts, digits_parts

TITLE = "A second task without forgetting the first"
STATEMENT = (
    "If adapters beside a frozen network change its logits by at most e, every sample whose margin exceeds 2 e keeps "
    "its answer; full fine-tuning gives no such promise."
)
SOURCE = "Rebuffi, Bilen and Vedaldi 2017 (residual adapters); McCloskey and Cohen 1989 (catastrophic forgetting)"
BUDGETS = (0.0, 0.1, 0.2, 0.4, 0.8)
FINE_TUNED = "full fine-tuning"


def second_task(
    data: Parts | None = None, *, epochs: int = 12, budgets: Sequence[float] = BUDGETS, temperature: float = 2.0
) -> Claim:
    """Train on the lower half of the classes, then on the upper half: adapters at several budgets, full fine-tuning.

    The frame has one row per method, measured on test images unless said otherwise: budget (of all adapters together,
    NaN for full fine-tuning); first_before, first and second, accuracies of the tasks; kept, share of first-task
    answers that did not change; logit_change (largest met) and logit_bound, e; kept_by_margin, share with margin > 2 e
    (bound); kept_proven, share whose state cannot reach a change of the answer (bound, never smaller up to rounding);
    broken, samples that changed although they were proven.
    """
    parts = data or digits_parts()
    half = parts.classes // 2
    first = Parts(*(_classes(part, 0, half) for part in (parts.train, parts.test)))
    second = Parts(*(_classes(part, half, parts.classes) for part in (parts.train, parts.test)))
    base = flow_net(parts.pixels, half, steps=2)
    # h |W|^2 <= 1.9: every step is proven to contract, so that what an adapter adds does not grow.
    fit(
        base,
        first.train.images,
        first.train.labels,
        epochs=epochs,
        temperature=temperature,
        after_step=lambda: base.limit(1.9 * base.steps),
    )
    table = []
    for budget in budgets:
        adapted = _with_seed(lambda b=budget: Adapted(copy.deepcopy(base), second.classes, budget=b))
        fit(
            adapted,
            second.train.images,
            second.train.labels,
            epochs=epochs,
            parameters=[p for p in adapted.parameters() if p.requires_grad],
        )
        table.append(
            {"method": "adapters", "budget": budget, **_adapted_row(adapted.double(), base, first.test, second.test)}
        )
    table.append({"method": FINE_TUNED, "budget": float("nan"), **_fine_tuned(base, first.test, second, epochs)})
    frame = pd.DataFrame(table)
    return Claim(
        "second-task",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame),
        frame,
        specification(_picture(frame)),
        "Solid: measured on test images. The proven share is a bound: it holds for every training of the adapters "
        "within the budget. The dotted and dashed levels that do not depend on the budget are full fine-tuning.",
    )


def _classes(data: ImageSet, low: int, high: int) -> ImageSet:
    """The images of the classes low .. high - 1, their labels counted from 0."""
    chosen = data.subset(((data.labels >= low) & (data.labels < high)).nonzero()[:, 0])
    return replace(chosen, labels=chosen.labels - low, class_names=data.class_names[low:high], sha256="")


def _with_seed(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@torch.no_grad()
def _adapted_row(adapted: Adapted, base: FlowNet, first: ImageSet, second: ImageSet) -> dict[str, Any]:
    images = first.images.double()
    before, after = copy.deepcopy(base).double()(images), adapted.first(images)
    moved, head = adapted.reach(), adapted.base.head.weight
    bound = moved * float(torch.linalg.vector_norm(head, dim=1).max())
    top = before.topk(2, dim=1).values
    by_margin = top[:, 0] - top[:, 1] > 2 * bound
    proven = by_margin | (pairwise_reach(before, head) * (1 - 1e-9) > moved)
    kept = before.argmax(dim=1) == after.argmax(dim=1)
    return {
        "first_before": share(before.argmax(dim=1) == first.labels),
        "first": share(after.argmax(dim=1) == first.labels),
        "second": share(adapted(second.images.double()).argmax(dim=1) == second.labels),
        "kept": share(kept),
        "logit_change": float((after - before).abs().max()),
        "logit_bound": bound,
        "kept_by_margin": share(by_margin),
        "kept_proven": share(proven),
        "broken": int((proven & ~kept).sum()),
    }


def _fine_tuned(base: FlowNet, first: ImageSet, second: Parts, epochs: int) -> dict[str, Any]:
    """Every weight free, a new head for the second task; the first task is asked through its old head."""
    tuned = copy.deepcopy(base).requires_grad_(True)
    old = tuned.head
    tuned.head = _with_seed(lambda: nn.Linear(old.in_features, second.classes))
    fit(tuned, second.train.images, second.train.labels, epochs=epochs)
    with torch.no_grad():
        before, states = base(first.images), tuned.states(first.images)[0]
        after = old(states[-1])
        return {
            "first_before": share(before.argmax(dim=1) == first.labels),
            "first": share(after.argmax(dim=1) == first.labels),
            "second": share(tuned(second.test.images).argmax(dim=1) == second.test.labels),
            "kept": share(before.argmax(dim=1) == after.argmax(dim=1)),
            "logit_change": float((after - before).abs().max()),
            "logit_bound": float("inf"),
            "kept_by_margin": 0.0,
            "kept_proven": 0.0,
            "broken": 0,
        }


def _findings(frame: pd.DataFrame) -> tuple[Finding, ...]:
    adapters, tuned = frame[frame["method"] == "adapters"], frame[frame["method"] == FINE_TUNED].iloc[0]
    small = adapters[adapters["budget"] > 0].iloc[0]
    none = adapters[adapters["budget"] == 0].iloc[0]
    return (
        Finding(
            "first-task accuracy before",
            float(small["first_before"]),
            "measured",
            ">=",
            0.9,
            "the first task was learned",
        ),
        Finding(
            "samples that changed although they were proven",
            float(adapters["broken"].sum()),
            "measured",
            "<=",
            0.0,
            "the guarantee",
        ),
        Finding(
            "logit change / its bound, largest",
            float((adapters["logit_change"] / adapters["logit_bound"].clip(lower=1e-9)).max()),
            "measured",
            "<=",
            1.0,
            "e",
        ),
        Finding(
            "measured kept share minus proven share, smallest",
            float((adapters["kept"] - adapters["kept_proven"]).min()),
            "measured",
            ">=",
            0.0,
            "the guarantee",
        ),
        Finding(
            f"proven share at budget {small['budget']:g}",
            float(small["kept_proven"]),
            "bound",
            ">=",
            0.5,
            "most samples",
        ),
        Finding(
            "second-task accuracy, best budget",
            float(adapters["second"].max()),
            "measured",
            ">=",
            float(none["second"]),
            "a new head alone",
        ),
        Finding("second-task accuracy, full fine-tuning", float(tuned["second"]), "measured"),
        Finding(
            "first-task answers kept, full fine-tuning",
            float(tuned["kept"]),
            "measured",
            "<=",
            float(adapters["kept"].min()),
            "kept by adapters at any budget",
        ),
    )


def _picture(frame: pd.DataFrame) -> Any:
    names = {
        "second": "second task, accuracy",
        "first": "first task, accuracy",
        "kept_proven": "first task, proven to stay",
    }
    adapters, tuned = frame[frame["method"] == "adapters"], frame[frame["method"] == FINE_TUNED].iloc[0]
    shown = adapters.melt("budget", list(names), "what", "value")
    shown["what"] = shown["what"].map(names)
    levels = [
        pd.DataFrame({"budget": adapters["budget"], "what": f"{names[key]}, {FINE_TUNED}", "value": tuned[key]})
        for key in ("second", "first")
    ]
    both = pd.concat([shown, *levels])
    return lines(
        both,
        "budget",
        "value",
        "what",
        order=list(dict.fromkeys(both["what"])),
        x_title="budget of all adapters (distance in state space)",
        y_title="share of test images",
        y_format=".0%",
    )
