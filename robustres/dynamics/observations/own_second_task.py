"""The effect that an adapter of a given size could have on the predictions of a given network."""

from collections.abc import Sequence

import pandas as pd

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.second_task import SOURCE
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, bound
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.fit import share

STATEMENT = (
    "A correction of norm e after a piece moves the logits by at most L e, L bounding what follows; "
    "larger margins survive."
)


def second_task_of(
    network: Dissection, data: ImageSet, *, budgets: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0)
) -> Claim:
    """The samples of a given network that keep their prediction under any adapter of a given size.

    The frame has one row per position of the adapter (after which piece) and budget: kept_proven, the share of images
    whose prediction provably survives every correction of at most that norm there (bound; nothing is trained).
    """
    logits = network.states(data.images)[-1]
    top = logits.topk(2, dim=1).values
    found = []
    places = [k for k in range(len(network.pieces)) if network.pieces[k].is_residual or k == len(network.pieces) - 2]
    for place in places:
        upper = network.upper_from(place + 1)
        for budget in budgets:
            kept = top[:, 0] - top[:, 1] > 2**0.5 * upper * budget * (1 + 1e-9)
            found.append(
                {"place": network.pieces[place].name, "budget": budget, "upper": upper, "kept_proven": share(kept)}
            )
    frame = pd.DataFrame(found)
    last = frame[frame["place"] == frame["place"].iloc[-1]].iloc[0]
    picture = lines(
        frame,
        "budget",
        "kept_proven",
        "place",
        order=list(dict.fromkeys(frame["place"])),
        x_title="norm of the correction after the piece",
        y_title="share of images proven to keep their answer",
        y_format=".0%",
        x_log=True,
    )
    return Claim(
        "second-task",
        "How much an adapter may add without changing answers",
        STATEMENT,
        SOURCE,
        (bound(f"proven share at budget {last['budget']:g} after {last['place']}", last["kept_proven"]),),
        frame,
        specification(picture),
        "A bound for every adapter of that size at that place, trained or not.",
    )
