"""The block ledger: how much each block can stretch, how tightly this is known, and what it costs in radius."""

import math
from typing import Any

import numpy as np
import pandas as pd

from robustres.reports.run import Run


def ledger(run: Run) -> pd.DataFrame:
    """The table `blocks` with, for each block,

    radius_cost: the factor by which this block's bound divides every certified radius (its upper bound). For a linear
        head the radii use the differences of two rows instead, which is never worse;
    log_share: its share of the logarithm of the product of all upper bounds, NaN if that product is at most 1;
    slack: upper / lower, the largest factor by which a perfect bound on this block alone could enlarge the radii.
    """
    blocks = run.tables["blocks"].copy()
    blocks["radius_cost"] = blocks["upper"]
    logs = np.log(blocks["upper"].where(blocks["upper"] > 0))
    total = float(logs.sum())
    blocks["log_share"] = logs / total if math.isfinite(total) and total > 0 else np.nan
    blocks["slack"] = blocks["upper"] / blocks["lower"].where(blocks["lower"] > 0)
    return blocks


def costliest_block(blocks: pd.DataFrame) -> dict[str, Any] | None:
    """The block with the largest finite upper bound, excluding the head, whose rows enter the radii in pairs."""
    finite = blocks[np.isfinite(blocks["upper"]) & (blocks["kind"] != "head")]
    if finite.empty:
        return None
    return {str(key): value for key, value in finite.loc[finite["upper"].idxmax()].to_dict().items()}
