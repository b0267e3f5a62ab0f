"""Every supported ONNX operator, against onnxruntime in small networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustres.models import load_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from robustres.models.sources.onnx import operators as _registered  # noqa: E402, F401
from robustres.models.sources.onnx.file import NEWEST, OLDEST  # noqa: E402
from robustres.models.sources.onnx.registry import OPERATORS, lookup, table  # noqa: E402

helper, numpy_helper = onnx.helper, onnx.numpy_helper
RNG = np.random.default_rng(0)


def test_the_versions_of_every_operator_are_those_of_the_standard() -> None:
    wrong = []
    for name in OPERATORS:
        for opset in range(OLDEST, min(NEWEST, onnx.defs.onnx_opset_version()) + 1):
            try:
                schema = onnx.defs.get_schema(name, opset, "")
            except onnx.defs.SchemaError:
                continue
            if not schema.deprecated and lookup(name, opset)[0] != schema.since_version:
                wrong.append(f"{name} in set {opset} is of {schema.since_version}, not {lookup(name, opset)[0]}")
    assert not wrong, "\n".join(wrong)


def test_the_page_lists_every_operator() -> None:
    page = Path(__file__).parents[2] / "docs" / "onnx.md"
    assert page.read_text().endswith(table())


def write(
    file: Path,
    nodes: Sequence[Any],
    constants: dict[str, np.ndarray] | None = None,
    *,
    shape: Sequence[Any] = ("n", 3, 6, 6),
    opset: int = 18,
    functions: Sequence[Any] = (),
) -> Path:
    """A file with one input `x` and an output `y` of any shape."""
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        weights,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))
    file.write_bytes(model.SerializeToString())
    return file


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


Row = tuple[str, int, dict[str, Any], list[np.ndarray | None]]
# Operator, operator set, attributes, further inputs. The first input is an image (n, 3, 6, 6).
ROWS: list[Row] = [
    *((name, 13, {}, []) for name in ("Abs", "Exp", "Neg", "Sqrt", "Sign", "Floor", "Ceil", "Erf", "Sin", "Atan")),
    *((name, 13, {}, []) for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Selu", "HardSigmoid")),
    *((name, 22, {}, []) for name in ("Mish", "HardSwish", "Celu", "Gelu", "ThresholdedRelu", "LeakyRelu")),
    ("Gelu", 20, {"approximate": "tanh"}, []),
    ("Selu", 6 + 1, {"alpha": 1.5, "gamma": 1.1}, []),
    ("Shrink", 9, {"lambd": 0.4, "bias": 0.1}, []),
    *((f"Reduce{kind}", 18, {"noop_with_empty_axes": 1}, []) for kind in ("L1", "L2", "SumSquare", "Mean")),
    ("Shrink", 9, {"lambd": -0.4, "bias": 0.1}, []),
    ("Pad", 19, {"mode": "wrap"}, [ints(0, 0, -1, 2, 0, 0, 2, -1)]),
    ("PRelu", 16, {}, [weight(3, 1, 1)]),
    ("PRelu", 9, {}, [weight(1)]),
    ("PRelu", 16, {}, [weight(6)]),
    ("Clip", 6 + 1, {"min": 0.2, "max": 0.7}, []),
    ("Clip", 13, {}, [np.float32(0.2), np.float32(0.7)]),
    ("Clip", 11, {}, [None, np.float32(0.5)]),
    *((name, 14, {}, [weight(3, 1, 1)]) for name in ("Add", "Sub", "Mul", "Div")),
    *((name, 7, {}, [np.float32(2.5)]) for name in ("Add", "Sub", "Mul", "Div", "Pow")),
    ("Pow", 15, {}, [np.int64(2)]),
    *((name, 13, {}, [np.float32(0.5)]) for name in ("Max", "Min", "Sum", "Mean")),
    *((name, 13, {}, [weight(3, 6, 6), np.float32(0.4)]) for name in ("Max", "Min", "Sum", "Mean")),
    ("Softmax", 13, {"axis": 1}, []),
    ("Softmax", 11, {"axis": 2}, []),
    ("LogSoftmax", 11, {}, []),
    ("Conv", 11, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [weight(4, 3, 3, 3), weight(4)]),
    ("Conv", 22, {"pads": [0, 1, 2, 0], "dilations": [1, 2]}, [weight(4, 3, 3, 3)]),
    ("Conv", 11, {"auto_pad": "SAME_UPPER", "strides": [2, 2], "group": 3}, [weight(6, 1, 3, 3)]),
    ("Conv", 11, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [weight(4, 3, 4, 4)]),
    ("Conv", 11, {"auto_pad": "VALID"}, [weight(4, 3, 3, 3)]),
    ("ConvTranspose", 11, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [weight(3, 4, 3, 3)]),
    ("ConvTranspose", 22, {"strides": [2, 2], "pads": [1, 0, 0, 1]}, [weight(3, 4, 3, 3), weight(4)]),
    ("ConvTranspose", 11, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, [weight(3, 4, 3, 3)]),
    ("ConvTranspose", 11, {"strides": [2, 2], "output_shape": [12, 12]}, [weight(3, 4, 3, 3)]),
    ("MatMul", 13, {}, [weight(6, 5)]),
    ("MatMul", 13, {}, [weight(3, 6, 5)]),
    *(("BatchNormalization", s, {}, [weight(3), weight(3), weight(3), floats(1, 2, 3)]) for s in (7, 9, 15)),
    ("InstanceNormalization", 22, {}, [weight(3), weight(3)]),
    ("LayerNormalization", 17, {}, [weight(6), weight(6)]),
    ("LayerNormalization", 17, {"axis": -2}, [weight(6, 6)]),
    ("LayerNormalization", 17, {"axis": 1}, [weight(6)]),
    ("GroupNormalization", 21, {"num_groups": 3}, [weight(3), weight(3)]),
    ("RMSNormalization", 23, {}, [weight(6)]),
    ("MeanVarianceNormalization", 13, {"axes": [2, 3]}, []),
    ("LpNormalization", 22, {"axis": 1}, []),
    ("LpNormalization", 1 + 6, {"p": 1}, []),
    ("LRN", 13, {"size": 3, "alpha": 0.1}, []),
    ("MaxPool", 8, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("MaxPool", 12, {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [2, 1]}, []),
    ("MaxPool", 22, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, []),
    ("MaxPool", 12, {"kernel_shape": [3, 3], "pads": [0, 2, 1, 0]}, []),
    ("AveragePool", 7, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("AveragePool", 10, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, []),
    ("AveragePool", 19, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "dilations": [2, 1]}, []),
    ("AveragePool", 11, {"kernel_shape": [4, 4], "strides": [3, 3], "ceil_mode": 1}, []),
    ("AveragePool", 11, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, []),
    ("LpPool", 18, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 0]}, []),
    *((name, 1 + 6, {}, []) for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    *((f"Reduce{n}", 11, {"axes": [2, -1]}, []) for n in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "LogSumExp")),
    ("ReduceL2", 13, {"axes": [1]}, []),
    *((f"Reduce{n}", 18, {"keepdims": 0}, [ints(1, 3)]) for n in ("Sum", "Mean", "Max", "Min", "SumSquare", "LogSum")),
    ("ReduceSum", 13, {"noop_with_empty_axes": 1}, []),
    ("CumSum", 14, {"reverse": 1, "exclusive": 1}, [np.int64(2)]),
    ("Reshape", 13, {}, [ints(0, -1)]),
    ("Reshape", 14, {"allowzero": 1}, [ints(-1, 3, 36)]),
    ("Flatten", 13, {"axis": 2}, []),
    ("Flatten", 13, {"axis": 0}, []),
    ("Unsqueeze", 11, {"axes": [1, -1]}, []),
    ("Unsqueeze", 13, {}, [ints(2)]),
    ("Transpose", 13, {"perm": [0, 2, 3, 1]}, []),
    ("Concat", 13, {"axis": -1}, []),
    ("Slice", 13, {}, [ints(1, -1), ints(5, -9), ints(2, 3), ints(2, -2)]),
    ("Slice", 10, {}, [ints(0), ints(3), ints(1)]),
    ("Slice", 9, {"starts": [1], "ends": [2], "axes": [1]}, []),
    ("Gather", 13, {"axis": 1}, [ints(2, -3)]),
    ("Gather", 13, {"axis": 3}, [np.int64(-1)]),
    ("Gather", 13, {"axis": 2}, [np.array([[0, 1], [4, 5]])]),
    ("Tile", 13, {}, [ints(1, 2, 1, 3)]),
    ("Expand", 13, {}, [ints(2, 1, 3, 1, 6)]),
    *(("Pad", 11, {"mode": mode}, [ints(0, 0, 1, 2, 0, 0, 2, 1)]) for mode in ("constant", "reflect", "edge")),
    ("Pad", 9, {"pads": [0, 1, 0, 0, 0, 0, 1, 0], "value": 0.5}, []),
    ("Pad", 18, {}, [ints(1, -1), np.float32(2.0), ints(2)]),
    ("Pad", 19, {"mode": "wrap"}, [ints(0, 0, 2, 1, 0, 0, 0, 3)]),
    ("Pad", 13, {"mode": "reflect"}, [ints(0, 2, 0, 0, 0, 1, 0, 0)]),
    ("Upsample", 9, {"mode": "nearest"}, [floats(1, 1, 2, 2)]),
    ("Upsample", 7, {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, []),
    ("Resize", 10, {"mode": "nearest"}, [floats(1, 1, 0.6, 1.7)]),
    *(
        ("Resize", 13, {"mode": "linear", "coordinate_transformation_mode": mode}, [None, floats(1, 1, 2, 0.5)])
        for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    ("Resize", 18, {"mode": "cubic", "axes": [2, 3], "exclude_outside": 1}, [None, None, ints(9, 4)]),
    *(
        ("Resize", 19, {"mode": "nearest", "nearest_mode": mode}, [None, floats(1, 1, 1.5, 0.7)])
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    ("Identity", 13, {}, []),
    ("Dropout", 10, {"ratio": 0.5}, []),
    ("Dropout", 13, {}, [np.float32(0.5), np.array(False)]),
    ("Einsum", 12, {"equation": "nchw,cd->ndhw"}, [weight(3, 2)]),
    ("Trilu", 14, {"upper": 0}, [np.int64(1)]),
    ("Where", 16, {}, []),
    ("TopK", 11, {"axis": -1}, [ints(3)]),
    ("Mod", 13, {"fmod": 1}, [np.float32(0.3)]),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[f"{name}-{opset}-{k}" for k, (name, opset, _, _) in enumerate(ROWS)])
def test_an_operator_agrees_with_onnxruntime(tmp_path: Path, row: Row) -> None:
    name, opset, attributes, others = row
    constants = {f"c{k}": np.asarray(value) for k, value in enumerate(others) if value is not None}
    inputs = ["x", *(f"c{k}" if value is not None else "" for k, value in enumerate(others))]
    if name == "Concat":
        inputs = ["x", "x"]
    if name == "Where":
        constants, inputs = {"c0": RNG.random((3, 1, 6)) > 0.5, "c1": weight(1)}, ["c0", "x", "c1"]
    nodes = [helper.make_node(name, inputs, ["z"], **attributes), *logits("z")]
    if name == "TopK":
        nodes[0].output.append("places")
    model = load_model(str(write(tmp_path / "net.onnx", nodes, constants, opset=opset)), input_shape=(3, 6, 6))
    assert model.module(torch.rand(3, 3, 6, 6)).shape[0] == 3  # the logits were compared on loading


def logits(name: str) -> list[Any]:
    """Nodes that turn any tensor with the images on its outermost axis into a matrix with one row per image."""
    return [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(ints(0))),
        helper.make_node("Constant", [], ["minus"], value=numpy_helper.from_array(ints(-1))),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "minus"], ["wanted"], axis=0),
        helper.make_node("Reshape", [name, "wanted"], ["y"]),
    ]
