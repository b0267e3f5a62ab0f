"""Which residual blocks of a network at hand are proven invertible, and what they do to real samples."""

from typing import Any

import pandas as pd
import torch

from robustres.data import ImageSet
from robustres.dynamics.charts import lines, specification
from robustres.dynamics.claim import Claim, Finding
from robustres.dynamics.dissection import Dissection
from robustres.dynamics.information import SOURCE, spectrum_row
from robustres.dynamics.jacobian import LARGEST_STATE, jacobians
from robustres.errors import InputError

STATEMENT = (
    "A residual block whose branch has K_F < 1 is invertible for sure; singular values at samples show "
    "what the others do."
)


def information_of(network: Dissection, data: ImageSet) -> Claim:
    """Per residual block of a network at hand: K_F, whether that proves it invertible, singular values at samples.

    The frame has one row per residual block: branch (bound), lower (bound of the smallest singular value, 1 - K_F where
    the shortcut is the identity), smallest, largest, rank (measured; NaN where the state is larger than 1,024), size.
    """
    states = network.states(data.images)
    if not network.residual:
        raise InputError("this network has no residual block, so nothing is preserved by a shortcut")
    rows = []
    for position in network.residual:
        piece, values = network.pieces[position], states[position]
        assert piece.row is not None
        identity = piece.kind == "residual (identity)"
        row: dict[str, Any] = {
            "block": piece.name,
            "branch": piece.row.branch,
            "lower": max(0.0, 1 - piece.row.branch) if identity else 0.0,
            "size": values[0].numel(),
        }
        if values[0].numel() <= LARGEST_STATE:
            found = torch.linalg.svdvals(jacobians(lambda x, p=position: network.run(x, p, p + 1), values))  # type: ignore[misc]
            spectrum = spectrum_row("", piece.name, position, found.min(dim=0).values)
            row |= {"smallest": float(found.min()), "largest": float(found.max()), "rank": spectrum["rank"]}
        rows.append({"smallest": float("nan"), "largest": float("nan"), "rank": float("nan"), **row})
    frame = pd.DataFrame(rows)
    proven = frame["branch"] < 1
    findings = [Finding("blocks that are proven invertible (K_F < 1)", float(proven.sum()), "bound")]
    met = frame["smallest"].notna()
    if met.any():
        slack = float((frame["smallest"] - frame["lower"])[met].min())
        findings.append(
            Finding("smallest singular value minus its lower bound", slack, "measured", ">=", -1e-9, "the bound")
        )
    shown = frame.melt("block", ["smallest", "largest", "branch"], "what", "value")
    names = {"smallest": "smallest singular value (measured)", "largest": "largest (measured)", "branch": "K_F (bound)"}
    shown["what"] = shown["what"].map(names)
    shown["position"] = shown.groupby("what").cumcount() + 1
    picture = lines(
        shown,
        "position",
        "value",
        "what",
        order=tuple(names.values()),
        x_title="residual block",
        y_title="factor",
        y_log=True,
    )
    return Claim(
        "information",
        f"{int(proven.sum())} of {len(frame)} blocks are proven invertible",
        STATEMENT,
        SOURCE,
        tuple(findings),
        frame,
        specification(picture),
        "Singular values of each block's Jacobian at real samples; the bound holds for every input.",
    )
