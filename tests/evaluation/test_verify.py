"""Instances of the verification competition: reading, refusing and deciding them."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.cli.verify import verify as command
from robustres.errors import DataError, InputError
from robustres.evaluation.verify import read_instances, verify
from robustres.evaluation.vnnlib import read_vnnlib

pytest.importorskip("onnxruntime")


def statement(path: Path, condition: str) -> Path:
    names = [f"(declare-const X_{i} Real)" for i in range(4)] + [f"(declare-const Y_{i} Real)" for i in range(2)]
    box = [f"(assert (<= X_{i} 0.6))\n(assert (>= X_{i} 0.4)) ; around the middle" for i in range(4)]
    path.write_text("\n".join([*names, *box, f"(assert {condition})"]))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with y0 = relu(sum x - 1) and y1 = 0.5 - y0 / 2; on the box, y0 lies in [0.6, 1.4]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    values = ([[1.0] * 4], [-1.0], [[1.0], [-0.5]], [0.0, 0.5])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    torch.onnx.export(model, (torch.zeros(1, 1, 2, 2),), path, dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize(
    ("condition", "result"),
    [
        ("(or (and (>= Y_1 Y_0)))", "unsat"),
        ("(<= Y_0 0.59)", "unsat"),
        ("(<= Y_0 0.61)", "sat"),
        ("(or (and (>= Y_0 1.41)) (and (>= Y_0 1.3) (<= Y_1 0.0)))", "sat"),
        ("(and (>= Y_0 1.0) (>= Y_1 0.1))", "unknown"),
        ("(<= (+ Y_0 (* 2 Y_1)) 0.99)", "unsat"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_small_instances_are_decided(condition: str, result: str, network: Path, tmp_path: Path) -> None:
    verdict = verify(network, statement(tmp_path / "p.vnnlib", condition), timeout=30)
    assert verdict.result == result
    assert (verdict.example is not None) == (result == "sat")


@pytest.mark.parametrize("condition", ["(>= Y_7 Y_0)", "(not (>= Y_1 Y_0))", "(<= (* Y_0 Y_1) 3)", "(>= Y_0 much)"])
def test_unsupported_conditions_are_refused(condition: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_vnnlib(statement(tmp_path / "p.vnnlib", condition))


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_instances_is_decided_line_by_line(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statement(tmp_path / "true.vnnlib", "(<= Y_0 0.59)")
    packed = gzip.compress(statement(tmp_path / "plain", "(<= Y_0 0.61)").read_bytes())
    (tmp_path / "false.vnnlib.gz").write_bytes(packed)
    table = tmp_path / "instances.csv"
    table.write_text(f"{network},true.vnnlib,20\n\n{network},false.vnnlib,20\n")
    command(instances=table)
    results = [line.split(",")[2] for line in capsys.readouterr().out.splitlines()]
    assert results == ["unsat", "sat"]
    command(instances=table, json=True)
    assert [row["result"] for row in json.loads(capsys.readouterr().out)["instances"]] == results


@pytest.mark.parametrize("text", ["a.onnx,b.vnnlib", "a.onnx,b.vnnlib,soon", "a.onnx,b.vnnlib,-1"])
def test_a_wrong_line_of_instances_is_named(text: str, tmp_path: Path) -> None:
    table = tmp_path / "instances.csv"
    table.write_text(f"a.onnx,b.vnnlib,3\n{text}\n")
    with pytest.raises(DataError, match="line 2"):
        read_instances(table)


def test_one_instance_or_a_file_of_instances_but_not_both(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--instances"):
        command(onnx=tmp_path / "a.onnx", instances=tmp_path / "b.csv")
