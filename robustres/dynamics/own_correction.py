"""What each residual block of a network at hand adds, and what its removal costs."""

import math

import pandas as pd
import torch

from robustres.data import ImageSet
from robustres.dynamics.charts import lines, specification
from robustres.dynamics.claim import Claim, Finding
from robustres.dynamics.correction import ROUNDING, SOURCE
from robustres.dynamics.dissection import Dissection
from robustres.dynamics.fit import share
from robustres.errors import InputError

STATEMENT = (
    "How large the step of each branch is, and what the answers become when a block passes on its shortcut alone."
)


def correction_of(network: Dissection, data: ImageSet) -> Claim:
    """What each residual block of a network at hand adds, and what removing it costs.

    The frame has one row per residual block: size, mean |F(x)| / |x| (measured); accuracy_without, kept_without
    (measured); kept_proven (share for which the bound of what follows proves that the answer stays).
    """
    if not network.residual:
        raise InputError("this network has no residual block, so there is no branch to look at")
    states = network.states(data.images)
    logits = states[-1]
    answers, last = logits.argmax(dim=1), len(network.pieces)
    clean = share(answers == data.labels)
    top = logits.topk(2, dim=1).values
    rows = []
    with torch.no_grad():
        for number, position in enumerate(network.residual, 1):
            x = states[position]
            step = torch.linalg.vector_norm(network.branch(position, x).flatten(1), dim=1)
            missing = network.run(network.skip(position, x), position + 1, last)
            # Without a head to pair rows of, two logits move apart by at most sqrt(2) times the bound.
            change = math.sqrt(2) * network.upper_from(position + 1) * step * ROUNDING
            kept = missing.argmax(dim=1) == answers
            proven = top[:, 0] - top[:, 1] > change
            rows.append(
                {
                    "block": network.pieces[position].name,
                    "position": number,
                    "size": float((step / torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-12)).mean()),
                    "accuracy_without": share(missing.argmax(dim=1) == data.labels),
                    "kept_without": share(kept),
                    "kept_proven": share(proven),
                    "proof_broken": int((proven & ~kept).sum()),
                }
            )
    frame = pd.DataFrame(rows)
    names = {
        "accuracy_without": "accuracy without it",
        "kept_without": "answers kept without it",
        "kept_proven": "proven to be kept",
    }
    shown = frame.melt("position", list(names), "what", "value")
    shown["what"] = shown["what"].map(names)
    picture = lines(
        shown,
        "position",
        "value",
        "what",
        order=list(names.values()),
        x_title="residual block",
        y_title="share of samples",
        y_format=".0%",
    )
    ranked = frame.sort_values("accuracy_without")
    cheapest, dearest = ranked.iloc[-1], ranked.iloc[0]
    return Claim(
        "correction",
        "What each block adds, and what its removal costs",
        STATEMENT,
        SOURCE,
        (
            Finding("accuracy of the whole network", clean, "measured"),
            Finding(
                f"accuracy without {dearest['block']}, the block that is missed most",
                float(dearest["accuracy_without"]),
                "measured",
            ),
            Finding(
                f"accuracy without {cheapest['block']}, the block that is missed least",
                float(cheapest["accuracy_without"]),
                "measured",
            ),
            Finding(
                "samples that broke the proof",
                float(frame["proof_broken"].sum()),
                "measured",
                "<=",
                0.0,
                "the guarantee",
            ),
        ),
        frame,
        specification(picture),
        "A removed block passes on its shortcut alone.",
    )
