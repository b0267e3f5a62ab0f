"""Which residual blocks of a given network are proven invertible, and their singular values at real samples."""

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.information import SOURCE, spectrum_row
from robustres.dynamics.measures.charts import lines, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, estimate, measured
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.jacobian import LARGEST_STATE, jacobians, lanczos_largest
from robustres.errors import InputError

STATEMENT = (
    "A residual block whose branch has K_F < 1 is invertible for sure; singular values at samples show "
    "what the others do."
)
# Number of images used for states that are too large for a full Jacobian.
LARGE_SAMPLES = 8


def information_of(network: Dissection, data: ImageSet) -> Claim:
    """For each residual block of a given network: K_F, whether it proves the block invertible, singular values at
    samples.

    The frame has one row per residual block: branch and upper (bounds), lower (lower bound on the smallest singular
    value, 1 - K_F if the shortcut is the identity), size, method, smallest, largest, rank. method "decomposed":
    measured at every image. "Lanczos", for states of more than 1,024 numbers: largest is a lower estimate at the first
    8 images, and smallest and rank are not computed (NaN).
    """
    states = network.states(data.images)
    if not network.residual:
        raise InputError("this network has no residual block, so no shortcut preserves information")
    frame = pd.DataFrame([_row(network, position, states[position]) for position in network.residual])
    return Claim(
        "information",
        f"{int((frame['branch'] < 1).sum())} of {len(frame)} blocks are proven invertible",
        STATEMENT,
        SOURCE,
        _findings(frame),
        frame,
        specification(_picture(frame)),
        "Singular values of each block's Jacobian at real samples; the bound holds for every input. A state of more "
        "than 1,024 numbers has an estimate of the largest (from below) and no smallest: not computed.",
    )


def _row(network: Dissection, position: int, values: Tensor) -> dict[str, Any]:
    piece = network.pieces[position]
    assert piece.row is not None
    row: dict[str, Any] = {
        "block": piece.name,
        "branch": piece.row.branch,
        "upper": piece.row.upper,
        "lower": max(0.0, 1 - piece.row.branch) if piece.kind == "residual (identity)" else 0.0,
        "size": values[0].numel(),
    }
    if values[0].numel() > LARGEST_STATE:
        largest = lanczos_largest(network.piece(position), values[:LARGE_SAMPLES])
        return {**row, "method": "Lanczos", "smallest": math.nan, "largest": float(largest.max()), "rank": math.nan}
    found = torch.linalg.svdvals(jacobians(network.piece(position), values))
    rank = spectrum_row("", piece.name, position, found.min(dim=0).values)["rank"]
    return {
        **row,
        "method": "decomposed",
        "smallest": float(found.min()),
        "largest": float(found.max()),
        "rank": rank,
    }


def _findings(frame: pd.DataFrame) -> tuple[Finding, ...]:
    whole, large = frame[frame["method"] == "decomposed"], frame[frame["method"] == "Lanczos"]
    findings = [bound("blocks that are proven invertible (K_F < 1)", (frame["branch"] < 1).sum())]
    if len(whole):
        slack = (whole["smallest"] - whole["lower"]).min()
        findings.append(measured("smallest singular value minus its lower bound", slack).at_least(-1e-9, "the bound"))
    if len(large):
        ratio = (large["largest"] / large["upper"]).max()
        findings += [
            estimate("largest singular value / its bound, states of more than 1,024 numbers", ratio).at_most(
                1 + 1e-9, "the certificate"
            ),
            measured("blocks whose smallest singular value was not computed (state too large)", len(large)),
        ]
    return tuple(findings)


def _picture(frame: pd.DataFrame) -> Any:
    numbered = frame.assign(position=range(1, len(frame) + 1))
    numbered["estimated"] = numbered["largest"].where(numbered["method"] == "Lanczos")
    numbered["largest"] = numbered["largest"].where(numbered["method"] == "decomposed")
    names = {
        "smallest": "smallest singular value (measured)",
        "largest": "largest (measured)",
        "estimated": "largest (estimate)",
        "branch": "K_F (bound)",
    }
    shown = numbered.melt("position", list(names), "what", "value").dropna()
    shown["what"] = shown["what"].map(names)
    order = [name for name in names.values() if (shown["what"] == name).any()]
    return lines(
        shown, "position", "value", "what", order=order, x_title="residual block", y_title="factor", y_log=True
    )
