"""Attack settings, the TOML file of a run, thresholds as a gate, and typos that are reported before any work."""

import json
import sys
from pathlib import Path

import pytest

from robustres.cli.main import app
from robustres.cli.values import attack_setting
from robustres.errors import InputError
from robustres.results import Requirement, RunFolder

MODEL = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
BASE = ("evaluate", "gate_net:net", "--data", "digits", "--limit", "20", "--norm", "l2", "--eps", "0.1,36/255")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    (tmp_path / "gate_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("gate_net", None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustres", *arguments])
        with pytest.raises(SystemExit) as stop:
            app()
        said = capsys.readouterr()
        return (stop.value.code if isinstance(stop.value.code, int) else 0), said.out, said.err

    return run


def test_a_settings_file_replaces_options_and_an_option_takes_precedence(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "run.toml").write_text(
        'data = "digits"\nlimit = 20\nnorm = "l2"\neps = ["0.1", "36/255"]\nattacks = ["pgd", "fmn"]\nseed = 3\n'
        'require = ["clean>=0"]\n[attack-setting.fmn]\nsteps = 7\n[attack-setting.pgd]\nsteps = 2\n'
    )
    code, _, said = call("evaluate", "gate_net:net", "--settings", "run.toml", "--seed", "1", "--out", "run")
    assert code == 0, said
    manifest = RunFolder(tmp_path / "run").manifest()
    assert manifest["settings"]["attacks"] == ["pgd", "fmn"]
    assert manifest["settings"]["attack_settings"] == {"pgd": {"steps": 2}, "fmn": {"steps": 7}}
    assert manifest["eps"] == {"l2": [0.1, 36 / 255]}
    assert manifest["seed"] == 1
    (tmp_path / "typo.toml").write_text("attaks = ['pgd']")
    code, _, said = call("evaluate", "gate_net:net", "--settings", "typo.toml")
    assert code == 2
    assert "no setting 'attaks'" in said


def test_a_threshold_is_a_gate_with_a_line_in_summary_and_report(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    gates = ("--require", "clean>=0.01", "--require", "certified@l2:36/255>=99%", "--require", "fgsm@l2:0.1>=0")
    code, said, _ = call(*BASE, "--attacks", "fgsm", "--out", "run", *gates)
    assert code == 1
    assert "pass: clean>=0.01" in said
    assert "FAIL: certified@l2:36/255>=0.99" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["met"] for row in summary["requirements"]] == [True, False, True]
    page = (tmp_path / "run" / "report.md").read_text()
    assert "**Fail:** certified@l2:36/255&gt;=0.99 was required" in page
    code, _, _ = call(*BASE, "--attacks", "fgsm", "--out", "run", "--require", "robust@l2:0.1>=0")
    assert code == 0
    assert call("report", "run", "--require", "clean>=100%")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--require", "certified@l2:0.3>=0.5"), "does not evaluate; it evaluates l2:0.1, l2:36/255"),
        (("--require", "certified>=0.5"), "a requirement is WHAT@NORM:EPS>=SHARE"),
        (("--require", "certified@l2:0.1>=2"), "must lie between 0 and 1"),
        (("--attack-setting", "apgd.steps=200"), "settings for 'apgd', which is not among the attacks"),
        (("--fast", "--attack-setting", "pgd.stepz=200"), "no setting 'stepz'"),
        (("--attack-setting", "steps"), "must be ATTACK.SETTING=VALUE"),
        (("--attacks", "pgdd"), "unknown attack 'pgdd'"),
        (("--attacks", "pgd", "--fast"), "--fast stands for --attacks fgsm,pgd; give one of the two options"),
        (("--steps", "9"), "--steps is of pgd, which is not among the attacks (strong); add --fast or --attacks pgd"),
        (("--certificate", "lipschitz,lip"), "got 'lip'"),
        (("--eps", "abc"), "cannot read 'abc' as a number"),
    ],
)
def test_typos_are_reported_before_the_model_is_loaded(arguments, said: str, call) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call("evaluate", "there_is_no:such", "--data", "digits", *BASE[6:], *arguments)
    assert code == 2
    assert said in error


@pytest.mark.parametrize("text", ["", "x", "clean@l2:1>=0", "robust@l3:1>=0.5", "robust@l2:-1>=0.5", "robust@l2:1>=x"])
def test_malformed_requirements_are_named(text: str) -> None:
    with pytest.raises(InputError):
        Requirement.read(text)


def test_values_of_attack_settings_have_their_types() -> None:
    values = {text: attack_setting(f"a.b={text}")[2] for text in ("3", "0.5", "8/255", "true", "ce")}
    assert values == {"3": 3, "0.5": 0.5, "8/255": 8 / 255, "true": True, "ce": "ce"}


def test_a_product_of_two_values_is_certified_within_the_requested_domain(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "gated_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Gated(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.value, self.gate = nn.Linear(64, 10), nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.value(x.flatten(1)) * self.gate(x.flatten(1)).sigmoid()\n"
    )
    base = ("certify", "gated_net:Gated", "--data", "digits", "--limit", "20", "--eps", "0.01", "--whole-effort", "0")
    assert call(*base, "--out", "everywhere")[0] == 0
    assert RunFolder(tmp_path / "everywhere").manifest()["lipschitz"] is None
    code, _, said = call(*base, "--domain", "unit", "--out", "unit")
    assert code == 0, said
    manifest = RunFolder(tmp_path / "unit").manifest()
    assert (manifest["lipschitz"]["domain"], manifest["settings"]["whole_effort"]) == ("unit", 0)
    assert (RunFolder(tmp_path / "unit").tables()["certificates"]["radius"] > 0).any()
    assert r"no change of the pixels within \[0, 1\] by more than" in (tmp_path / "unit" / "report.md").read_text()
    assert "domain must be all or unit" in call(*base, "--domain", "cube")[2]
