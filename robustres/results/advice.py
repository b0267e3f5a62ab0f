"""What to try next where bounds that hold for all inputs certify nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustres.results.schema import NETWORK

LOCAL = "--certificate best --seconds-per-image 15"


def includes_local(certificates: Sequence[Any], seconds_per_image: float | None) -> bool:
    """Whether these entries of the setting `certificate` include bounds around each image."""
    return "local" in certificates or ("best" in certificates and bool(seconds_per_image))


def advice(manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One sentence with the option that may certify more; empty if it was used, or if something is certified.

    summary: as returned by `summarise` for the run of this manifest.
    """
    settings = manifest.get("settings") or {}
    given = settings.get("certificate")
    entries = given if isinstance(given, list) else [given]
    if not settings.get("certify") or includes_local(entries, settings.get("seconds_per_image")):
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
