"""The tables of a run: their columns and types."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from robustres.errors import InputError
from robustres.threat import Norm

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)

# The function to which a radius refers: the network itself, or another classifier derived from it, given by name.
NETWORK = "network"
# Prefix of the name of the classifier that votes under noise.
SMOOTHED = "smoothed"
# No classifier has more classes; a larger number is damage.
MOST_CLASSES = 1_000_000

# Every example is measured in these norms, whichever norm its attack used.
MEASURED_NORMS: tuple[Norm, ...] = ("l2", "linf")

# Rows of the table of attacks that no attack made: random corruptions of the same size, which show the average case.
AVERAGE_CASE = ("gaussian-noise", "low-contrast", "jpeg")

# Column -> pandas dtype. Radii and distances are in pixel units, in the norm of their row.
TABLES: dict[str, dict[str, str]] = {
    # One row per sample. margin: logit of the label minus the largest other logit. finite: no NaN or infinity met.
    "samples": {
        "index": "int64",
        "label": "int64",
        "prediction": "int64",
        "correct": "bool",
        "margin": "float64",
        "finite": "bool",
    },
    # One row per sample, attack, norm and eps. distance: of the example found, infinite if none; 0 if the clean image
    # is misclassified. eps is NaN for a minimum-norm attack. l2, linf: the same example measured in those norms. loss:
    # largest other logit minus the label's at the example. verified: the model as given was evaluated on it again.
    "attacks": {
        "index": "int64",
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "fooled": "bool",
        "distance": "float64",
        "l2": "float64",
        "linf": "float64",
        "adversarial_prediction": "int64",
        "loss": "float64",
        "verified": "bool",
        "steps": "int64",
        "gradient_evaluations": "int64",
    },
    # One row per sample, certificate and norm. function: the function to which the radius refers, NETWORK or another
    # name. radius: 0 if nothing is certified. prediction: the certified class, -1 if there is none.
    # guarantee: "deterministic" or "probability 1 - DELTA". source: the bound that gave the radius.
    "certificates": {
        "index": "int64",
        "certificate": "str",
        "function": "str",
        "norm": "str",
        "radius": "float64",
        "prediction": "int64",
        "source": "str",
        "guarantee": "str",
    },
    # One row per block of the network, in order. textbook, joint: bounds (NaN if not computed); upper: the smallest
    # valid bound, named by method; lower: an estimate from below; floor: no bound that uses only the range of the
    # slopes can be lower (NaN if not computed), which says nothing about the block itself.
    "blocks": {
        "name": "str",
        "kind": "str",
        "shortcut": "float64",
        "branch": "float64",
        "textbook": "float64",
        "joint": "float64",
        "upper": "float64",
        "lower": "float64",
        "floor": "float64",
        "method": "str",
        "guarantee": "str",
    },
    # One row per attack, norm, eps and check for gradient masking.
    "diagnosis": {
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "check": "str",
        "value": "float64",
        "suspicious": "bool",
        "verdict": "str",
    },
    # One row per epoch of training, if the model was trained by robustres.
    "training": {"epoch": "int64", "loss": "float64", "clean": "float64", "certified": "float64"},
    # A bounded number of samples for the gallery; pixels as float32 bytes in (C, H, W) order.
    "examples": {
        "index": "int64",
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "channels": "int64",
        "height": "int64",
        "width": "int64",
        "clean": "object",
        "adversarial": "object",
    },
    # Every adversarial example, if requested; too much for a page. pixels: "uint8" for an 8-bit image (divide by 255),
    # "float32" otherwise; image: their bytes in (C, H, W) order.
    "adversarial": {
        "index": "int64",
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "channels": "int64",
        "height": "int64",
        "width": "int64",
        "pixels": "str",
        "image": "object",
    },
    # One row per local certificate that was kept, where they were asked for; the certificate is a file of its own,
    # certificates/CERTIFICATE-NORM-INDEX.npz, with this digest.
    "proofs": {
        "index": "int64",
        "certificate": "str",
        "norm": "str",
        "radius": "float64",
        "sha256": "str",
    },
}
# Tables that no report reads, and the archive made from them.
KEPT = ("adversarial", "proofs")
ARCHIVE = "adversarial.npz"
# The folder of the files that "proofs" lists.
PROOFS = "certificates"

# One row per part, attack or certificate, and norm: the wall-clock time of its samples. Not a table of the run, since
# times differ from run to run.
TIMINGS: dict[str, str] = {
    "first": "int64",
    "samples": "int64",
    "side": "str",
    "name": "str",
    "norm": "str",
    "eps": "float64",
    "seconds": "float64",
}


def empty_table(name: str) -> pd.DataFrame:
    """An empty table with columns and types as in TABLES."""
    return _empty(name).copy()


@cache
def _empty(name: str) -> pd.DataFrame:
    return without_rows(TABLES[name])


def without_rows(columns: Mapping[str, str]) -> pd.DataFrame:
    """An empty frame with these columns and types."""
    return pd.DataFrame({column: pd.Series(dtype=kind) for column, kind in columns.items()})


def typed_table(name: str, rows: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with exactly the columns and types of the table; InputError names a column that is missing or unknown."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return empty_table(name)
    columns = TABLES[name]
    if set(frame.columns) != set(columns):
        raise InputError(
            f"table {name!r} has columns {sorted(columns)}, got {sorted(frame.columns)}; rename or add the difference"
        )
    ordered = frame if list(frame.columns) == list(columns) else frame[list(columns)]
    kinds = zip(columns.items(), ordered.dtypes, strict=True)
    changed = {column: kind for (column, kind), found in kinds if found != kind}
    return ordered.astype(changed) if changed else ordered
