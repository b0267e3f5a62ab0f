"""Checks that rows read from a file can have been written by robustres: columns, types, ranges, and no duplicate
rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustres.errors import InputError
from robustres.results.schema import MOST_CLASSES, NETWORK, SMOOTHED, TABLES, typed_table
from robustres.threat import ATTACK_NORMS

# Columns whose combination is unique in a table.
_KEYS = {
    "samples": ["index"],
    "attacks": ["index", "attack", "norm", "eps"],
    "certificates": ["index", "certificate", "function", "norm"],
    "training": ["epoch"],
    "adversarial": ["index", "attack", "norm", "eps"],
    "proofs": ["index", "certificate", "norm"],
}


def checked_rows(name: str, rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The rows with the columns and types of the table; InputError says what is impossible about them."""
    if name == "certificates" and "function" not in rows and "certificate" in rows:
        rows = _of_version_1(rows)
    if name == "blocks" and "floor" not in rows and "lower" in rows:
        rows = rows.assign(floor=np.nan)
    try:
        frame = typed_table(name, rows)
    except (InputError, TypeError, ValueError) as error:
        raise _wrong(file, f"it is not a table {name!r}: {error}") from error
    for column, (holds, wanted) in _RULES.items():
        if column in TABLES[name] and len(frame) and not holds(frame[column]):
            raise _wrong(file, f"{column} must be {wanted}")
    if name in ("certificates", "proofs") and not frame["radius"].between(0, np.inf, inclusive="left").all():
        raise _wrong(file, "radius must be finite and at least 0")
    if name == "samples" and not frame["prediction"].ge(0).all():
        raise _wrong(file, "prediction must be a class")
    if name == "proofs" and not frame["certificate"].astype(str).str.fullmatch("[a-z]{1,20}").all():
        raise _wrong(file, "certificate must be a name of small letters")
    if name == "examples":
        _check_pixels(frame, file, {"clean": 4, "adversarial": 4})
    if name == "adversarial":
        if not frame["pixels"].isin(("uint8", "float32")).all():
            raise _wrong(file, "pixels must be uint8 or float32")
        _check_pixels(frame, file, {"image": frame["pixels"].map({"uint8": 1, "float32": 4}).to_numpy()})
    return frame


def require_unique(name: str, frame: pd.DataFrame, folder: Path) -> None:
    """Raise InputError if two rows of a whole table have the same key."""
    keys = _KEYS.get(name)
    if keys and (twice := frame.duplicated(keys)).any():
        first = frame.loc[twice, keys].iloc[0].to_dict()
        raise InputError(
            f"{folder} contains two rows of table {name!r} for {first}; a part was copied: remove the copy, or "
            "evaluate "
            "again with --overwrite"
        )


def _of_version_1(rows: pd.DataFrame) -> pd.DataFrame:
    """Version 1 had no column for the function; the name of a certificate began with `smoothed` if it was not for the
    network.
    """
    names = rows["certificate"].astype(str)
    return rows.assign(function=names.where(names.str.startswith(SMOOTHED), NETWORK))


def _check_pixels(frame: pd.DataFrame, file: Path, sizes: dict[str, Any]) -> None:
    shapes = frame[["channels", "height", "width"]]
    if not shapes.gt(0).all(axis=None):
        raise _wrong(file, "channels, height and width must be positive")
    for column, size in sizes.items():
        found = [len(value) if isinstance(value, bytes) else -1 for value in frame[column]]
        if not (size * shapes.prod(axis=1).to_numpy() == np.array(found, dtype=np.int64)).all():
            raise _wrong(file, f"{column} must hold the pixels of (channels, height, width)")


def _wrong(file: Path, what: str) -> InputError:
    return InputError(
        f"{file} is damaged ({what}); evaluate again with the same command and --out: this part is computed again"
    )


Rule = tuple[Callable[["pd.Series[float]"], bool], str]

_RULES: dict[str, Rule] = {
    "index": (lambda column: bool((column >= 0).all()), "at least 0"),
    "label": (lambda column: bool(column.between(0, MOST_CLASSES - 1).all()), f"a class below {MOST_CLASSES}"),
    "prediction": (lambda column: bool(column.between(-1, MOST_CLASSES - 1).all()), f"a class below {MOST_CLASSES}"),
    "adversarial_prediction": (
        lambda column: bool(column.between(-1, MOST_CLASSES - 1).all()),
        f"a class below {MOST_CLASSES}",
    ),
    "norm": (lambda column: bool(column.isin(ATTACK_NORMS).all()), f"one of {', '.join(ATTACK_NORMS)}"),
    "eps": (lambda column: bool((column.isna() | ((column > 0) & np.isfinite(column))).all()), "positive and finite"),
    "distance": (lambda column: bool((column >= 0).all()), "at least 0"),
}
