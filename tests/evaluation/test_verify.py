"""Instances of the verification competition: what is read, refused, decided."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.errors import DataError
from robustres.evaluation.verify import verify
from robustres.evaluation.vnnlib import read_vnnlib

pytest.importorskip("onnxruntime")


def statement(path: Path, condition: str) -> Path:
    names = [f"(declare-const X_{i} Real)" for i in range(4)] + [f"(declare-const Y_{i} Real)" for i in range(2)]
    box = [f"(assert (<= X_{i} 0.6))\n(assert (>= X_{i} 0.4)) ; around the middle" for i in range(4)]
    path.write_text("\n".join([*names, *box, f"(assert {condition})"]))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y0 = relu(sum x - 1), y1 = 0.5 - y0 / 2: on the box y0 lies in [0.6, 1.4]."""
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
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_small_instances_are_decided(condition: str, result: str, network: Path, tmp_path: Path) -> None:
    verdict = verify(network, statement(tmp_path / "p.vnnlib", condition), timeout=30)
    assert verdict.result == result
    assert (verdict.example is not None) == (result == "sat")


@pytest.mark.parametrize("condition", ["(>= Y_7 Y_0)", "(not (>= Y_1 Y_0))", "(<= (+ Y_0 Y_1) 3)", "(>= Y_0 much)"])
def test_what_is_not_understood_is_refused(condition: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_vnnlib(statement(tmp_path / "p.vnnlib", condition))
