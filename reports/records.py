"""Rows of a frame as plain JSON values: what appears in figures, pages and summaries."""

import math
from typing import Any

import pandas as pd


def plain(value: Any) -> Any:
    """A JSON value; None for a number that is missing or not finite.

    >>> plain(float("inf")) is None, plain(0.1 + 0.2)
    (True, 0.30000000000000004)
    """
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One dictionary of plain values per row."""
    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict(orient="records")]
