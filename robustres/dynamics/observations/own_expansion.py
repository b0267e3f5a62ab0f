"""Expansion of real samples by the residual blocks of a given network, and the effect of scaling the two summands."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.expansion import SOURCE, TITLE, scale_bars, stretch_chart
from robustres.dynamics.measures.charts import COLOURS, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, estimate, measured
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.jacobian import LARGEST_STATE, extreme_singular_values
from robustres.dynamics.measures.scaling import scaling_sweep
from robustres.errors import InputError

STATEMENT = (
    "At every sample a block stretches by no more than its certificate; scaling its shortcut by alpha and its branch "
    "by beta at evaluation trades accuracy for certified radius. Nothing is retrained."
)
SCALES = ((1.0, 1.0), (1.0, 0.9), (1.0, 0.7), (1.0, 0.5), (1.0, 0.0), (0.9, 1.0), (0.9, 0.9))
# Full Jacobians are decomposed for states up to this size; larger ones get Lanczos estimates.
DECOMPOSED = LARGEST_STATE // 4
LARGE_SAMPLES = 16


def expansion_of(
    network: Dissection, data: ImageSet, *, scales: Sequence[tuple[float, float]] = SCALES, eps: float | None = None
) -> Claim:
    """Jacobian norms of the residual blocks of a given network at real samples, and a sweep of alpha and beta.

    The frame has rows of two parts. "block": block, name, sample, stretch (a lower estimate of the block's constant),
    method (how it was computed: "decomposed", or "Lanczos" for states larger than 256 numbers, at the first 16 images),
    upper and textbook (bounds). "sweep": alpha, beta, accuracy (measured), upper, certified at `eps` and median_radius
    (bounds), of the given network with every block replaced by alpha S x + beta F(x).

    eps: l2 budget of `certified`; by default the median certified radius of the unscaled network, to two digits.
    """
    if not network.residual:
        raise InputError("this network has no residual block, so there is no I + J_F to measure")
    blocks = pd.DataFrame(_block_rows(network, data)).assign(part="block")
    if eps is None:
        eps = float(f"{scaling_sweep(network, data, [(1.0, 1.0)], eps=0.0)['median_radius'].iloc[0]:.2g}")
    sweep = scaling_sweep(network, data, scales, eps=eps).assign(part="sweep")
    frame = pd.concat([blocks, sweep], ignore_index=True)
    names = {"certified": f"certified at {eps:g}", "accuracy": "accuracy"}
    bars = scale_bars(sweep, names, [COLOURS[2], COLOURS[1]], "share of images")
    picture = alt.hconcat(stretch_chart(blocks), bars).resolve_scale(color="independent", strokeDash="independent")
    return Claim(
        "jacobians",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(blocks, sweep, eps),
        frame,
        specification(picture),
        "Left: points are estimates from below at the images, lines are bounds for every input. Right: the network as "
        "it is with every block alpha S x + beta F(x), not retrained: accuracy, and the share certified at l2 distance "
        f"{eps:g}.",
    )


def _block_rows(network: Dissection, data: ImageSet) -> list[dict[str, Any]]:
    states = network.states(data.images)
    found = []
    for number, position in enumerate(network.residual, 1):
        piece, x = network.pieces[position], states[position]
        assert piece.row is not None
        if x[0].numel() > DECOMPOSED:
            x = x[:LARGE_SAMPLES]
        values = extreme_singular_values(network.piece(position), x, largest_state=DECOMPOSED)
        found += [
            {
                "block": number,
                "name": piece.name,
                "sample": sample,
                "stretch": float(value),
                "method": "decomposed" if values.exact else "Lanczos",
                "upper": piece.row.upper,
                "textbook": piece.row.textbook,
            }
            for sample, value in enumerate(values.largest)
        ]
    return found


def _findings(blocks: pd.DataFrame, sweep: pd.DataFrame, eps: float) -> tuple[Finding, ...]:
    worst = blocks.groupby("name")["stretch"].max()
    best = sweep.sort_values(["certified", "median_radius"]).iloc[-1]
    return (
        estimate("stretch / bound, largest", (blocks["stretch"] / blocks["upper"]).max()).at_most(
            1.0 + 1e-9, "the certificate"
        ),
        measured(f"blocks that expand some sample, of {len(worst)}", (worst > 1).sum()),
        estimate(f"largest stretch, at {worst.idxmax()}", worst.max()),
        bound(f"certified share at {eps:g}, blocks as they are", sweep["certified"].iloc[0]),
        bound(f"largest certified share of the sweep, {best['alpha']:g} S x + {best['beta']:g} F", best["certified"]),
        measured("accuracy there", best["accuracy"]),
    )
