"""Properties in VNN-LIB 2: the same as in VNN-LIB 1, l2 balls, what is refused, exact arithmetic."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.errors import DataError, InputError
from robustres.evaluation.verify import verify
from robustres.evaluation.vnnlib import read_vnnlib

PLACES = ("0,0,0,0", "0,0,0,1", "0,0,1,0", "0,0,1,1")
BOX = "".join(f"(assert (and (<= X[{place}] 0.6) (>= X[{place}] 0.4)))" for place in PLACES)


def ball(square: str, centre: str = "0.5") -> str:
    terms = " ".join(f"(* (- X[{place}] {centre}) (- X[{place}] {centre}))" for place in PLACES)
    return f"(assert (<= (+ {terms}) {square}))"


def second(path: Path, inputs: str, condition: str, kind: str = "float32") -> Path:
    """A property in VNN-LIB 2 of four inputs and two outputs."""
    path.write_text(
        f"(vnnlib-version <2.0>) ; a comment (\n(declare-network f (declare-input X {kind} [1, 1, 2, 2])"
        f"(declare-output Y {kind} [1,2]))\n{inputs}(assert {condition})"
    )
    return path


def first(path: Path, condition: str) -> Path:
    """The property with BOX in VNN-LIB 1."""
    names = [f"(declare-const X_{i} Real)" for i in range(4)] + [f"(declare-const Y_{i} Real)" for i in range(2)]
    box = [f"(assert (<= X_{i} 0.6))(assert (>= X_{i} 0.4))" for i in range(4)]
    old = condition.replace("Y[0,0]", "Y_0").replace("Y[0,1]", "Y_1")
    path.write_text("\n".join([*names, *box, f"(assert {old})"]))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y0 = relu(sum x - 1) and y1 = 0.5 - y0 / 2; where |x - 0.5| <= 0.2 in l2, y0 lies in [0.6, 1.4]."""
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for parameter, value in zip(
            model.parameters(), ([[1.0] * 4], [-1.0], [[1.0], [-0.5]], [0.0, 0.5]), strict=True
        ):
            parameter.copy_(torch.tensor(value))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    torch.onnx.export(model, (torch.zeros(1, 1, 2, 2),), path, dynamo=True, verbose=False)
    return path


CONDITIONS = [
    ("(or (and (>= Y[0,1] Y[0,0])))", "unsat"),
    ("(<= Y[0,0] 0.59)", "unsat"),
    ("(<= Y[0,0] 0.61)", "sat"),
    ("(or (and (>= Y[0,0] 1.41)) (and (>= Y[0,0] 1.3) (<= Y[0,1] 0.0)))", "sat"),
    ("(<= (- Y[0,0] (* 0.1 Y[0,1])) 0.5)", "unsat"),
]


@pytest.mark.parametrize(("condition", "result"), CONDITIONS)
@pytest.mark.filterwarnings("ignore")
def test_both_versions_of_the_language_give_the_same_result(
    condition: str, result: str, network: Path, tmp_path: Path
) -> None:
    paths = first(tmp_path / "1.vnnlib", condition), second(tmp_path / "2.vnnlib", BOX, condition)
    one, two = (verify(network, path, timeout=30) for path in paths)
    assert one.result == two.result == result
    assert (
        one.assignment.startswith("((X_0 ") == two.assignment.startswith("X float32 [1,1,2,2]\n") == (result == "sat")
    )
    old, new = (read_vnnlib(path).parts[0] for path in paths)
    for before, after in zip(old.cases, new.cases, strict=True):
        assert torch.equal(before.rows, after.rows)
        assert torch.equal(before.limits, after.limits)
    assert torch.equal(old.region.lower, new.region.lower)


@pytest.mark.parametrize(("condition", "result"), CONDITIONS)
@pytest.mark.filterwarnings("ignore")
def test_l2_balls_are_decided_with_and_without_a_box(
    condition: str, result: str, network: Path, tmp_path: Path
) -> None:
    for inputs in (ball("0.04"), ball("0.04") + BOX):
        path = second(tmp_path / "2.vnnlib", inputs, condition, kind="Real")
        verdict = verify(network, path, timeout=30)
        assert verdict.result == result
        if verdict.example is not None:
            assert sum((Fraction(x) - Fraction(1, 2)) ** 2 for x in verdict.example[0].tolist()) <= Fraction("0.04")


@pytest.mark.filterwarnings("ignore")
def test_every_region_of_a_disjunction_of_inputs_is_decided(network: Path, tmp_path: Path) -> None:
    high = " ".join(f"(>= X[{place}] 0.55)" for place in PLACES)
    low = " ".join(f"(<= X[{place}] 0.45)" for place in PLACES)
    for condition, result in (("(<= Y[0,0] 0.59)", "unsat"), ("(>= Y[0,0] 1.3)", "sat")):
        path = second(tmp_path / "2.vnnlib", f"{BOX}(assert (or (and {low}) (and {high})))", condition)
        assert len(read_vnnlib(path).parts) == 2
        assert verify(network, path, timeout=30).result == result


def test_a_ball_contains_every_point_that_satisfies_its_inequality(tmp_path: Path) -> None:
    """The decimals are no floats, the centre lies outside the box: whatever is in the set is in the region."""
    path = second(tmp_path / "2.vnnlib", BOX + ball("0.0307", centre="0.3333"), "(<= Y[0,0] 0)")
    region = read_vnnlib(path).parts[0].region
    assert region.norm == "l2"
    assert torch.equal(region.centre, region.lower)
    edge = Fraction("0.0307") - 3 * (Fraction("0.4") - Fraction("0.3333")) ** 2
    point = [Fraction("0.4")] * 3 + [Fraction("0.3333") + Fraction(math.isqrt(math.floor(edge * 10**40)), 10**20)]
    away = sum((x - Fraction(c)) ** 2 for x, c in zip(point, region.centre[0].tolist(), strict=True))
    assert away <= Fraction(float(region.eps[0])) ** 2


def test_a_strict_comparison_is_not_satisfied_by_equality(tmp_path: Path) -> None:
    x, y = torch.full((4,), 0.5, dtype=torch.float64), torch.tensor([1.0, 0.25], dtype=torch.float64)
    for relation, holds in (("<=", True), ("<", False), ("==", True), ("!=", False)):
        path = second(tmp_path / "2.vnnlib", BOX, f"({relation} Y[0,0] 1.0)")
        assert read_vnnlib(path).violated(x, y) == holds
    assert not read_vnnlib(path).violated(x + 0.2, y + 1)


REFUSED = [
    (BOX, "(<= Y[0,7] 0.0)", "not an element of Y"),
    (BOX, "(<= Y[0] 0.0)", "not an element of Y"),
    (BOX, "(<= Z[0] 0.0)", "declared variable"),
    (BOX, "(<= (* Y[0,0] Y[0,1]) 0.0)", "must be linear"),
    (BOX, "(<= X[0,0,0,0] Y[0,1])", "not about both"),
    (BOX + "(assert (<= (+ X[0,0,0,0] X[0,0,0,1]) 1.0))", "(<= Y[0,1] 0.0)", "conditions on inputs"),
    (ball("0.04").replace("(* (-", "(* 2.0 (-", 1), "(<= Y[0,1] 0.0)", "conditions on inputs"),
    (BOX, "(not (<= Y[0,1] 0.0))", "got not"),
    ("", "(<= Y[0,1] 0.0)", "a lower and an upper bound"),
    (BOX + "(assert (<= X[0,0,0,0] 0.1))", "(<= Y[0,1] 0.0)", "no input"),
    (BOX, "(<= X[0,0,0,0] 0.0)", "condition on the outputs"),
    (BOX + "(assert (<= (* X[0,0,0,0] X[0,0,0,0] X[0,0,0,0]) 1.0))", "(<= Y[0,1] 0.0)", "products of two"),
]


@pytest.mark.parametrize(("inputs", "condition", "reason"), REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(
    inputs: str, condition: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        read_vnnlib(second(tmp_path / "2.vnnlib", inputs, condition))


def test_other_declarations_are_refused(network: Path, tmp_path: Path) -> None:
    path = second(tmp_path / "2.vnnlib", BOX, "(<= Y[0,1] 0.0)")
    text = path.read_text()
    changes = [
        ("<2.0>", "<3.0>", "got <3.0>"),
        ("float32 [1,2]", "int8 [1,2]", "got int8"),
        ("(declare-output", '(declare-hidden H float32 [1] "h") (declare-output', "hidden nodes"),
        ("(assert", "(declare-network g (declare-input A Real [1]) (declare-output B Real [1]))(assert", "got 2"),
    ]
    for old, new, reason in changes:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=reason):
            read_vnnlib(path)
    path.write_text(text.replace("Y float32 [1,2]", "Y float32 [2]").replace("Y[0,1]", "Y[1]"))
    with pytest.raises(InputError, match="declares Y"):
        verify(network, path, timeout=1)
