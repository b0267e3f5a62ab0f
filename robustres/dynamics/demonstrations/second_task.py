"""A second task without forgetting the first: adapters under a budget, and the predictions that provably stay."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import nn

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.correction import pairwise_reach
from robustres.dynamics.measures.charts import lines, rows, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, measured
from robustres.dynamics.measures.fit import fit, share
from robustres.dynamics.small_networks.adapter import Adapted
from robustres.dynamics.small_networks.flow import FlowNet, flow_net
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.guard import random_state_kept

TITLE = "A second task without forgetting the first"
STATEMENT = (
    "If adapters beside a frozen network change its logits by at most e, every sample whose margin exceeds 2 e keeps "
    "its answer; full fine-tuning gives no such promise."
)
SOURCE = "Rebuffi, Bilen and Vedaldi 2017 (residual adapters); McCloskey and Cohen 1989 (catastrophic forgetting)"
BUDGETS = (0.0, 0.1, 0.2, 0.4, 0.8)
FINE_TUNED = "full fine-tuning"


def second_task(
    data: Parts | None = None,
    *,
    epochs: int = 12,
    budgets: Sequence[float] = BUDGETS,
    temperature: float = 2.0,
    seeds: Sequence[int] = (0, 1, 2),
) -> Claim:
    """Train on the lower half of the classes, then on the upper half: adapters at several budgets, full fine-tuning.

    The frame has one row per seed (of weights and of the order of samples) and method, measured on test images unless
    said otherwise: budget (of all adapters together, NaN for full fine-tuning); first_before, first and second,
    accuracies of the tasks; kept, share of first-task predictions that did not change; logit_change (largest found) and
    logit_bound, e; kept_by_margin, share with margin > 2 e (bound); kept_proven, share whose state provably cannot
    reach a change of the prediction (bound, never smaller up to rounding); broken, number of samples that changed
    despite the proof.
    """
    parts = data or digits_parts()
    half = parts.classes // 2
    first = Parts(*(_classes(part, 0, half) for part in (parts.train, parts.test)))
    second = Parts(*(_classes(part, half, parts.classes) for part in (parts.train, parts.test)))
    frame = pd.DataFrame(
        [
            {"seed": seed, **row}
            for seed in seeds
            for row in _rows(_frozen(first, epochs, temperature, seed), first.test, second, epochs, budgets, seed)
        ]
    )
    return Claim(
        "second-task",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame),
        frame,
        specification(_picture(frame)),
        f"Means over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, bars from the smallest to the largest. "
        "Accuracies are measured on test images; the proven share is a bound: it holds for every training of the "
        "adapters within the budget. The levels that do not depend on the budget are full fine-tuning.",
    )


def _frozen(first: Parts, epochs: int, temperature: float, seed: int) -> FlowNet:
    """A network trained on the first task with h |W|^2 <= 1.9, so its steps contract and corrections cannot grow."""
    base = flow_net(first.pixels, first.classes, steps=2, seed=seed)
    fit(
        base,
        first.train.images,
        first.train.labels,
        epochs=epochs,
        temperature=temperature,
        after_step=lambda: base.limit(1.9 * base.steps),
        seed=seed,
    )
    return base


def _rows(
    base: FlowNet, first: ImageSet, second: Parts, epochs: int, budgets: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """One row per method, all based on the same frozen network."""
    found = []
    for budget in budgets:
        adapted = _with_seed(seed, lambda b=budget: Adapted(copy.deepcopy(base), second.classes, budget=b))
        free = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        fit(adapted, second.train.images, second.train.labels, epochs=epochs, parameters=free, seed=seed)
        row = _adapted_row(adapted.double(), base, first, second.test)
        found.append({"method": "adapters", "budget": budget, **row})
    tuned = _fine_tuned(base, first, second, epochs, seed)
    return [*found, {"method": FINE_TUNED, "budget": float("nan"), **tuned}]


def _classes(data: ImageSet, low: int, high: int) -> ImageSet:
    """The images of the classes low .. high - 1, their labels counted from 0."""
    chosen = data.subset(((data.labels >= low) & (data.labels < high)).nonzero()[:, 0])
    return replace(chosen, labels=chosen.labels - low, class_names=data.class_names[low:high], sha256="")


def _with_seed(seed: int, make: Any) -> Any:
    with random_state_kept():
        torch.manual_seed(seed)
        return make()


@torch.no_grad()
def _adapted_row(adapted: Adapted, base: FlowNet, first: ImageSet, second: ImageSet) -> dict[str, Any]:
    images = first.images.double()
    before, after = copy.deepcopy(base).double()(images), adapted.first(images)
    moved, head = adapted.reach(), adapted.base.head.weight
    most = moved * float(torch.linalg.vector_norm(head, dim=1).max())
    top = before.topk(2, dim=1).values
    by_margin = top[:, 0] - top[:, 1] > 2 * most
    proven = by_margin | (pairwise_reach(before, head) * (1 - 1e-9) > moved)
    kept = before.argmax(dim=1) == after.argmax(dim=1)
    return {
        "first_before": share(before.argmax(dim=1) == first.labels),
        "first": share(after.argmax(dim=1) == first.labels),
        "second": share(adapted(second.images.double()).argmax(dim=1) == second.labels),
        "kept": share(kept),
        "logit_change": float((after - before).abs().max()),
        "logit_bound": most,
        "kept_by_margin": share(by_margin),
        "kept_proven": share(proven),
        "broken": int((proven & ~kept).sum()),
    }


def _fine_tuned(base: FlowNet, first: ImageSet, second: Parts, epochs: int, seed: int) -> dict[str, Any]:
    """Train all weights with a new head for the second task; the first task is evaluated with its old head."""
    tuned = copy.deepcopy(base).requires_grad_(True)
    old = tuned.head
    tuned.head = _with_seed(seed, lambda: nn.Linear(old.in_features, second.classes))
    fit(tuned, second.train.images, second.train.labels, epochs=epochs, seed=seed)
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
    adapters, tuned = frame[frame["method"] == "adapters"], frame[frame["method"] == FINE_TUNED]
    means = adapters.groupby("budget")[["second", "kept", "kept_proven"]].mean()
    smallest = min(budget for budget in means.index if budget > 0)
    change = (adapters["logit_change"] / adapters["logit_bound"].clip(lower=1e-9)).max()
    return (
        measured("first-task accuracy before, worst seed", adapters["first_before"].min()).at_least(
            0.9, "the first task was learned"
        ),
        measured("samples that changed although they were proven", adapters["broken"].sum()).at_most(
            0.0, "the guarantee"
        ),
        measured("logit change / its bound, largest", change).at_most(1.0, "e"),
        measured(
            "measured kept share minus proven share, smallest", (adapters["kept"] - adapters["kept_proven"]).min()
        ).at_least(0.0, "the guarantee"),
        bound(f"proven share at budget {smallest:g}", means["kept_proven"][smallest]).at_least(0.5, "most samples"),
        measured("second-task accuracy, best budget", means["second"].max()).at_least(
            means["second"].loc[0.0], "a new head alone"
        ),
        measured("second-task accuracy, full fine-tuning", tuned["second"].mean()),
        measured("first-task accuracy, full fine-tuning", tuned["first"].mean()),
        measured("first-task answers kept, full fine-tuning", tuned["kept"].mean()).at_most(
            means["kept"].min(), "kept by adapters at any budget"
        ),
    )


def _picture(frame: pd.DataFrame) -> Any:
    names = {
        "second": "second task, accuracy",
        "first": "first task, accuracy",
        "kept_proven": "first task, proven to stay",
    }
    adapters, tuned = frame[frame["method"] == "adapters"], frame[frame["method"] == FINE_TUNED]
    shown = adapters.melt(["seed", "budget"], list(names), "what", "value")
    shown["what"] = shown["what"].map(names)
    levels = [
        adapters[["budget"]].assign(what=f"{names[key]}, {FINE_TUNED}", value=tuned[key].mean())
        for key in ("second", "first")
    ]
    both = pd.concat([shown[["budget", "what", "value"]], *levels]).groupby(["what", "budget"], as_index=False)["value"]
    spread = both.agg(["mean", "min", "max"]).reset_index().rename(columns={"mean": "value"})
    order = [*names.values(), *(f"{names[key]}, {FINE_TUNED}" for key in ("second", "first"))]
    chart = lines(
        spread,
        "budget",
        "value",
        "what",
        order=order,
        x_title="budget of all adapters (distance in state space)",
        y_title="share of test images",
        y_format=".0%",
    )
    bars = alt.Chart(rows(spread)).mark_rule(opacity=0.6).encode(x="budget:Q", y="min:Q", y2="max:Q", color="what:N")
    return alt.layer(bars, chart)
