"""What to try next where bounds that hold for all inputs certify nothing."""

from collections.abc import Mapping
from typing import Any

from robustres.results.schema import NETWORK

LOCAL = "--certificate best --seconds-per-image 15"


def advice(manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One sentence with the option that may certify more; empty if it was used, or if something is certified.

    summary: as returned by `summarise` for the run of this manifest.
    """
    settings = manifest.get("settings") or {}
    given = settings.get("certificate")
    entries = given if isinstance(given, list) else [given]
    if not settings.get("certify") or "local" in entries or ("best" in entries and settings.get("seconds_per_image")):
        return ""
    if summary["refused"]:
        return f"Bounds around each image exist for more operations than bounds for all inputs: try {LOCAL}."
    rows = [row for row in summary["certificates"] if row["function"] == NETWORK]
    if not rows or any(row["certified"] for row in rows):
        return ""
    return (
        "No image is certified at these eps: bounds that hold for all inputs are too loose for this network. Bounds "
        f"around each image may prove more: try {LOCAL}."
    )
