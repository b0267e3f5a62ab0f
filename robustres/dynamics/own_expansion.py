"""How far the residual blocks of a network at hand stretch real samples, against their certificates."""

import pandas as pd
import torch

from robustres.data import ImageSet
from robustres.dynamics.charts import specification
from robustres.dynamics.claim import Claim, Finding
from robustres.dynamics.dissection import Dissection
from robustres.dynamics.expansion import SOURCE, TITLE, largest_singular_values, stretch_chart
from robustres.dynamics.jacobian import LARGEST_STATE, jacobians
from robustres.errors import InputError

STATEMENT = "At every sample a block stretches by no more than its certificate."


def expansion_of(network: Dissection, data: ImageSet) -> Claim:
    """Jacobian norms of the residual blocks of a network at hand, at real samples, against their bounds.

    The frame has one row per block and sample, as in part "block" of `expansion`. Blocks whose state is larger than
    1,024 are measured along the direction of steepest ascent of a power iteration: still an estimate from below.
    """
    if not network.residual:
        raise InputError("this network has no residual block, so there is no I + J_F to look at")
    states = network.states(data.images)
    found = []
    for number, position in enumerate(network.residual, 1):
        piece, x = network.pieces[position], states[position]
        assert piece.row is not None
        for sample, value in enumerate(_stretches(network, position, x)):
            found.append(
                {
                    "block": number,
                    "name": piece.name,
                    "sample": sample,
                    "stretch": value,
                    "upper": piece.row.upper,
                    "textbook": piece.row.textbook,
                }
            )
    frame = pd.DataFrame(found)
    worst = frame.groupby("name")["stretch"].max()
    return Claim(
        "jacobians",
        TITLE,
        STATEMENT,
        SOURCE,
        (
            Finding(
                "stretch / bound, largest",
                float((frame["stretch"] / frame["upper"]).max()),
                "estimate",
                "<=",
                1.0 + 1e-9,
                "the certificate",
            ),
            Finding(f"blocks that expand some sample, of {len(worst)}", float((worst > 1).sum()), "measured"),
            Finding(f"largest stretch, at {worst.idxmax()}", float(worst.max()), "estimate"),
        ),
        frame,
        specification(stretch_chart(frame)),
        "Points are estimates from below at the images; lines are bounds for every input.",
    )


def _stretches(network: Dissection, position: int, x: torch.Tensor) -> list[float]:
    """The largest singular value of a block's Jacobian at every sample, or what 20 power iterations reach of it."""

    def block(values: torch.Tensor) -> torch.Tensor:
        return network.run(values, position, position + 1)

    if x[0].numel() <= LARGEST_STATE // 4:
        return largest_singular_values(jacobians(block, x))
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    size = torch.zeros(len(x))
    for _ in range(20):
        direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
        _, image = torch.autograd.functional.jvp(block, x, direction)  # type: ignore[no-untyped-call]
        size = image.flatten(1).norm(dim=1)
        _, direction = torch.autograd.functional.vjp(block, x, image)  # type: ignore[no-untyped-call]
    return [float(value) for value in size]
