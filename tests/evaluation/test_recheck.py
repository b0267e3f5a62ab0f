"""Local certificates are kept on request, can be proved again elsewhere, and tampering is detected."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustres.certify.local.certificate import Certificate
from robustres.certify.local.evidence import Evidence
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question
from robustres.certify.local.stored import certificate_bytes, image_shape, read_certificate
from robustres.cli.main import app
from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.evaluation import Run, Settings, evaluate, recheck
from robustres.models import load_model, residual_net, save_checkpoint
from robustres.results import sha256
from tests.certify.local.drawn import drawn, questions
from tests.certify.local.test_no_false_proof import evidences

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two runs of it that kept their certificates."""
    folder = tmp_path_factory.mktemp("recheck")
    torch.manual_seed(0)
    network = residual_net(block="residual", depth=1, width=4, image_shape=(1, 4, 4), classes=3, pool=1)
    (*_, last) = (part for part in network.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():  # so that its predictions differ and the radii are finite
        last.bias -= network.eval()(images().images).mean(dim=0)
    save_checkpoint(network, folder / "model.safetensors")
    evaluate(str(folder / "model.safetensors"), images(), folder / "run", SETTINGS, cache=False)
    return folder


SETTINGS = Settings(
    eps={"linf": (1 / 255,)},
    attacks=(),
    joint=False,
    certificate="local",
    seconds_per_image=0.1,
    keep_certificates=True,
    part_size=2,
)


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return load_data((torch.rand(3, 1, 4, 4, generator=generator), torch.arange(3)))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run to tamper with."""
    import shutil

    shutil.copytree(folder / "run", tmp_path / "run")
    for file in folder.glob("model.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "run"


def test_radii_of_the_network_in_float32_are_proved_again_with_its_rounding(folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, dtype="float32")
    evaluate(str(folder / "model.safetensors"), images(), tmp_path / "run", settings, cache=False)
    rows = recheck(tmp_path / "run", data=images())
    assert len(rows) == 6
    assert rows["confirmed"].all()


def test_every_radius_is_confirmed_and_the_command_reports_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = recheck(run, data=images())
    assert len(rows) == 6
    assert set(rows["norm"]) == {"l2", "linf"}
    assert rows["confirmed"].all()
    assert (rows["proved"] >= rows["radius"]).all()
    monkeypatch.setattr(sys, "argv", ["robustres", "recheck", str(run), "--json"])
    with pytest.raises(SystemExit) as stop:
        app()
    assert stop.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "recheck": [{"norm": "l2", "radii": 3, "confirmed": 3}, {"norm": "linf", "radii": 3, "confirmed": 3}],
        "not_confirmed": [],
    }
    assert (run / "recheck.csv").is_file()


def resealed(run: Path, change: Callable[[Arrays], None], name: str = "local-l2-000000001.npz") -> None:
    """Change a certificate and every digest over it, as an attacker would."""
    file = run / "certificates" / name
    with np.load(file) as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    change(arrays)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    file.write_bytes(content.getvalue())
    renewed(run, name, content.getvalue())


def renewed(run: Path, name: str, content: bytes) -> None:
    from robustres.results import RunFolder

    folder = RunFolder(run)
    folder.unseal()
    certificate, norm, index = name.removesuffix(".npz").split("-")
    for part in folder.parts().names():
        rows = folder.part("proofs", part) if part != "all" else None
        if rows is None:
            continue
        mine = (rows["index"] == int(index)) & (rows["norm"] == norm) & (rows["certificate"] == certificate)
        rows.loc[mine, "sha256"] = sha256(content)
        folder.write_part("proofs", part, rows)
    folder.seal()


def why(run: Path, data: ImageSet | None = None) -> str:
    """The result for sample 1 in l2, while all others are confirmed."""
    rows = recheck(run, data=data).set_index(["norm", "index"])
    assert rows["confirmed"].sum() == 5
    return str(rows.loc[("l2", 1), "why"])


def test_a_changed_file_and_a_missing_file_are_named(run: Path) -> None:
    file = run / "certificates" / "local-l2-000000001.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert "was changed" in why(run)
    file.unlink()
    assert "cannot be read" in why(run)


def test_changed_tables_are_refused(run: Path) -> None:
    from robustres.results import RunFolder

    rows = RunFolder(run).part("certificates", "000000000")
    rows["radius"] *= 1.5
    RunFolder(run).write_part("certificates", "000000000", rows)
    with pytest.raises(InputError, match="was changed after the run ended"):
        recheck(run)


def test_a_larger_claim_with_consistent_digests_is_not_confirmed(run: Path) -> None:
    from robustres.results import RunFolder

    folder = RunFolder(run)
    folder.unseal()
    rows = folder.part("certificates", "000000000")
    mine = (rows["index"] == 1) & (rows["norm"] == "l2")
    rows.loc[mine, "radius"] *= 1.01
    folder.write_part("certificates", "000000000", rows)
    folder.seal()
    assert "its proof reaches" in why(run)


def moved_image(arrays: Arrays) -> None:
    arrays["image"] += 1e-6


def other_class(arrays: Arrays) -> None:
    arrays["label"] = (arrays["label"] + 1) % 3


def larger_eps(arrays: Arrays) -> None:
    arrays["eps"] = arrays["eps"] * 2


def other_norm(arrays: Arrays) -> None:
    arrays["norm"] = np.array("linf")


def nothing_of_it(arrays: Arrays) -> None:
    arrays.clear()


def infinite(arrays: Arrays) -> None:
    arrays["eps"] = np.array(np.inf)


def other_network(arrays: Arrays) -> None:
    arrays["steps"] = np.array(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (moved_image, "is not sample 1 of"),
        (other_class, "is for class"),
        (other_norm, "is for linf"),
        (nothing_of_it, "cannot be read"),
        (infinite, "must be finite"),
        (other_network, "another structure"),
    ],
)
def test_a_changed_certificate_with_consistent_digests_is_detected(
    change: Callable[[Arrays], None], said: str, run: Path
) -> None:
    resealed(run, change)
    assert said in why(run, images())


def test_a_certificate_that_claims_more_proves_only_what_is_true(run: Path) -> None:
    resealed(run, larger_eps)
    row = recheck(run).set_index(["norm", "index"]).loc[("l2", 1)]
    network, image = load_model(str(run / "../model.safetensors")).module, images().images[1:2]
    d = torch.randn(5000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    d *= row["proved"] / d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert bool((network((image + d).clamp(0, 1)).argmax(dim=1) == row["label"]).all())


def test_another_model_and_a_run_without_kept_certificates_are_named(folder: Path, run: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="other weights"):
        recheck(run, other)
    moved = load_model(str(folder / "model.safetensors"))
    with torch.no_grad():
        for values in moved.module.parameters():
            values.zero_()
    assert not recheck(run, moved)["confirmed"].any()  # the digest is that of the file, but the weights differ
    evaluate(other, images(), tmp_path / "none", Settings(eps={"l2": (0.1,)}, attacks=(), certificate="local"))
    with pytest.raises(InputError, match="kept no certificates"):
        recheck(tmp_path / "none", other)
    with pytest.raises(InputError, match="keep_certificates"):
        Settings(eps={"l2": (0.1,)}, keep_certificates=True)


def test_certificates_are_kept_part_by_part_and_again_after_an_interruption(folder: Path, run: Path) -> None:
    files = sorted(file.name for file in (run / "certificates").iterdir())
    assert files == [f"local-{norm}-{index:09d}.npz" for norm in ("l2", "linf") for index in range(3)]
    (run / "parts" / "000000002.json").unlink()  # as if the run had been interrupted
    (run / "digest.json").unlink()
    (run / "certificates" / "local-l2-000000002.npz").write_bytes(b"half")
    manifest = json.loads((run / "run.json").read_text())
    again: Run = evaluate(manifest["model"]["source"], images(), run, SETTINGS)
    assert len(again.certificates) == 6
    assert recheck(run)["confirmed"].all()


@pytest.fixture(scope="module")
def found() -> tuple[Program, Question, Certificate]:
    """A question refuted by a point, with a certificate of every kind."""
    made, _ = drawn("relu", 1)
    ((question, _),) = questions(made, "l2", 1)
    every = evidences(made, question)
    evidence = Evidence(every["branching"].helped, every["quadratic"].quadratics, every["branching"].trees)
    image = question.region.centre[0]
    label = int(made.values(image[None])[-1].argmax())
    return made, question, Certificate(image, label, "l2", float(question.region.eps[0]), evidence)


def test_every_kind_of_evidence_survives_serialisation(found: tuple[Program, Question, Certificate]) -> None:
    made, question, first = found
    assert first.evidence.helped
    assert first.evidence.quadratics
    assert first.evidence.trees
    content = certificate_bytes(first, made)
    again = read_certificate(content, made)
    assert image_shape(content) == tuple(first.image.shape)
    assert again.methods == first.methods
    assert certificate_bytes(again, made) == content
    assert torch.equal(Proof.of(made, question, again.evidence).radii, Proof.of(made, question, first.evidence).radii)


def test_damaged_evidence_is_refused_or_proves_nothing_false(found: tuple[Program, Question, Certificate]) -> None:
    made, question, certificate = found
    generator = np.random.default_rng(0)
    tried = 0
    for _ in range(40):
        with np.load(io.BytesIO(certificate_bytes(certificate, made))) as archive:
            arrays = {key: archive[key].copy() for key in archive.files}
        damage(arrays, generator)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        try:
            evidence = read_certificate(content.getvalue(), made).evidence
        except InputError:
            continue
        tried += 1
        with contextlib.suppress(RuntimeError, IndexError, KeyError, ValueError):
            assert not bool(Proof.of(made, question, evidence).whole.any())
    assert 3 < tried < 37


def damage(arrays: Arrays, generator: np.random.Generator) -> None:
    """One array with another shape, other indices, or NaN."""
    names = [name for name in arrays if arrays[name].size and name != "image"]
    name = names[int(generator.integers(len(names)))]
    values, kind = arrays[name], int(generator.integers(3))
    if kind == 0:
        arrays[name] = values.reshape(-1)[: values.size // 2]
    elif kind == 1:
        arrays[name] = (values * -3 - 1) if values.dtype.kind in "if" else np.array("l7")
    else:
        arrays[name] = np.full_like(values, np.nan) if values.dtype.kind == "f" else np.array(["x"])
