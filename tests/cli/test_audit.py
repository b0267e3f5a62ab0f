"""`robustres audit` from the user's view: verdicts, the saved witness, exit codes, one line for bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustres.cli.main import app

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]
SHAPE = ("--input-shape", "1,8,8")
QUICK = ("--restarts", "2", "--seconds", "1")

FACTORIES = """
import torch
from torch import nn


def seeded(*layers):
    return nn.Sequential(*layers).eval()


def wrong():
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3, padding=1), n_power_iterations=30)
    return seeded(layer, nn.Flatten())


def linear():
    torch.manual_seed(0)
    return seeded(nn.Flatten(), nn.Linear(64, 3))
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `robustres audit ARGUMENTS` in a folder that holds audited_models.py: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "audited_models.py").write_text(FACTORIES)
    sys.modules.pop("audited_models", None)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["robustres", "audit", *arguments])
        with pytest.raises(SystemExit) as stop:
            app()
        captured = capsys.readouterr()
        code = stop.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


def factory(name: str) -> nn.Module:
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec(FACTORIES, namespace)  # the same source that the command imports
    return namespace[name]()


def test_a_refuted_claim_exits_with_1_and_saves_a_self_contained_witness(run: Run) -> None:
    code, out, err = run("audited_models:wrong", "--claimed-lipschitz", "1", *SHAPE, *QUICK, "--out", "out", "--json")
    assert code == 1, err
    summary = json.loads(out)
    assert summary == json.loads(Path("out/audit.json").read_text())
    assert summary["verdict"] == "refuted"
    (claim,) = summary["claims"]
    assert 1 < claim["lower"] <= claim["upper"]
    with np.load(Path("out") / claim["witness"]) as witness:
        x, other, ratio = (torch.from_numpy(witness[name]) for name in ("x", "other", "ratio"))
    model = factory("wrong").double()
    with torch.no_grad():
        change = (model(other[None]) - model(x[None])).norm()
    assert 1 < float(ratio) <= float(change / (other - x).norm()) * (1 + 1e-12)


def test_a_proven_claim_and_an_open_table_exit_with_0(run: Run) -> None:
    norm = float(torch.linalg.matrix_norm(factory("linear")[1].weight.detach().double(), ord=2))
    code, out, err = run(
        "audited_models:linear", "--claimed-lipschitz", str(norm * 1.01), "--data", "digits", *QUICK, "--device", "cpu"
    )
    assert code == 0, err
    assert "proven" in out
    assert (Path("runs") / "audit-linear" / "audit.csv").is_file()


@pytest.mark.parametrize("form", ["json", "csv"])
def test_claims_per_layer_are_read_from_a_table(run: Run, form: str) -> None:
    table = {"json": '{"1": 0.1, "0": 1}', "csv": "name,claimed\n1,1/10\n0,1\n"}[form]
    path = Path(f"claims.{form}")
    path.write_text(table)
    code, out, err = run("audited_models:linear", "--claims", str(path), *SHAPE, *QUICK, "--json")
    assert code == 1, err
    claims = json.loads(out)["claims"]
    assert [(row["name"], row["claimed"], row["verdict"]) for row in claims] == [
        ("1", 0.1, "refuted"),
        ("0", 1, "proven"),
    ]
    assert claims[1]["witness"] is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--claimed-lipschitz", "one", *SHAPE), "'one'"),
        (("--claimed-lipschitz", "-1", *SHAPE), "at least 0"),
        (("--claimed-lipschitz", "1"), "--input-shape"),
        (("--claimed-lipschitz", "1", "--input-shape", "64"), "--input-shape"),
        (("--claimed-lipschitz", "1", "--data", "nowhere"), "nowhere"),
        ((*SHAPE,), "nothing is claimed"),
        (("--claims", "absent.json", *SHAPE), "absent.json"),
        (("--claims", "audited_models.py", *SHAPE), "JSON object"),
        (("--claims", "unknown.json", *SHAPE), "no layer called 'stem'"),
        (("--claimed-lipschitz", "1", "--device", "tpu9", *SHAPE), "tpu9"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(arguments: tuple[str, ...], word: str, run: Run) -> None:
    Path("unknown.json").write_text('{"stem": 1}')
    code, out, err = run("audited_models:linear", *arguments, "--out", "out")
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert not Path("out").exists()
