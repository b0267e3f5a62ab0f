"""Independent verification of the local certificates stored by a run: they are proved again in float64."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.program import Program
from robustres.certify.local.stored import image_shape, read_certificate
from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.evaluation.replayed import model_of_run
from robustres.models import LoadedModel
from robustres.results import NETWORK, RunFolder

LOCAL = "local"  # the name of local certificates in the tables
COLUMNS = ("index", "norm", "label", "radius", "proved", "confirmed", "why")


def recheck(
    folder: Path | str,
    model: LoadedModel | torch.nn.Module | str | None = None,
    data: ImageSet | str | None = None,
    *,
    device: torch.device | str = "cpu",
    download: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> pd.DataFrame:
    """One row per radius claimed by a local certificate of the run in `folder`, with the radius proved again here.

    model: the network, or its specification; if omitted, that of the run's manifest, with its normalisation.
    data: the images; if given, those in the certificates must be the same.
    Columns: index, norm, label (the certified class), radius (as claimed), proved (here), confirmed (proved >= radius)
    and why (one sentence if it is not confirmed).
    Raises InputError if the run stored no certificates, if a file of it was changed, or if the weights or data differ.
    """
    run = RunFolder(Path(folder))
    run.digest()
    if not run.manifest()["settings"].get("keep_certificates"):
        raise InputError(f"{run.path} kept no certificates; certify with --keep-certificates")
    runs = torch.float32 if run.manifest()["settings"].get("dtype") == "float32" else None
    claims, loaded = _claims(run), model_of_run(run, model, download)
    images = load_data(data) if isinstance(data, str) else data
    program: Program | None = None
    rows: list[dict[str, Any]] = []
    loaded.module.to(device).eval()
    for done, claim in enumerate(claims):
        progress("recheck", done, len(claims))
        proved, why = 0.0, ""
        try:
            content = _content(run, claim)
            program = program or local_program(loaded.module, image_shape(content), runs=runs)
            certificate = read_certificate(content, program)
            why = _objection(certificate, claim, images)
            proved = 0.0 if why else _proved(program, certificate)
        except InputError as error:
            why = str(error)
        if not why and proved < claim["radius"]:
            why = f"its proof reaches {proved:.6g}, not {claim['radius']:.6g}"
        rows.append({**{key: claim[key] for key in COLUMNS[:4]}, "proved": proved, "confirmed": not why, "why": why})
    progress("recheck", len(claims), len(claims))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _claims(run: RunFolder) -> list[dict[str, Any]]:
    """Every radius above 0 proved by local bounds, with the digest of the stored certificate."""
    columns = ["index", "certificate", "norm"]
    table = run.table("certificates")
    table = table[(table["certificate"] == LOCAL) & (table["function"] == NETWORK) & (table["radius"] > 0)]
    table = table[table["source"].astype(str).str.startswith(LOCAL)]  # the others are of other certificates
    found = table.merge(run.table("proofs")[[*columns, "sha256"]], on=columns, how="left")
    claims: list[dict[str, Any]] = found.rename(columns={"prediction": "label"}).to_dict(orient="records")  # type: ignore[assignment]
    return claims


def _content(run: RunFolder, claim: Mapping[str, Any]) -> bytes:
    if not isinstance(claim["sha256"], str):
        raise InputError("the run contains no certificate for it")
    return run.proof(claim)


def _objection(certificate: Certificate, claim: Mapping[str, Any], images: ImageSet | None) -> str:
    """Why a certificate does not match the claim, in one sentence; empty if it does."""
    if certificate.norm != claim["norm"]:
        return f"the certificate is for {certificate.norm}, not {claim['norm']}"
    if certificate.label != claim["label"]:
        return f"the certificate is for class {certificate.label}, not {claim['label']}"
    if images is None:
        return ""
    index = claim["index"]
    if index >= len(images):
        return f"the data has {len(images)} samples, so there is no sample {index}"
    mine = images.batch(torch.tensor([index]))[0].to(certificate.image)
    if mine.shape != certificate.image.shape or not bool((mine == certificate.image).all()):
        return f"the image in the certificate is not sample {index} of {images.source}"
    return ""


def _proved(program: Program, certificate: Certificate) -> float:
    try:
        return proved_radius(program, certificate)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        raise InputError(f"the certificate does not fit the network ({type(error).__name__})") from error


def recheck_summary(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """For each norm, the number of claimed and of confirmed radii."""
    return [
        {"norm": norm, "radii": len(group), "confirmed": int(group["confirmed"].sum())}
        for norm, group in rows.groupby("norm", sort=False)
    ]
