"""ONNX files as found in practice: fixed batches, functions, branches, names, and malicious files."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from robustres import audit, enforce, lipschitz
from robustres.errors import ModelError, UnsupportedOperationError
from robustres.models import load_model, save_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

IMAGE = (2, 6, 6)


class Residual(nn.Module):
    """A block with batch normalisation and a head after a reshape that depends on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(72, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + functional.silu(self.norm(self.conv(x)))
        return self.head(x.view(x.size(0), -1))


class Token(nn.Module):
    """A token in front of the pixels and attention over both: the batch size occurs in three shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.embed = nn.Conv2d(2, 4, 2, 2)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        return self.head(functional.gelu(x + y)[:, 0])


def exported(model: nn.Module, file: Path, *, batch: int | None, opset: int = 17) -> Path:
    """Export by torch, for one batch size or for any."""
    axes = None if batch else {"x": {0: "n"}}
    example = torch.rand(batch or 2, *IMAGE)
    torch.onnx.export(
        model, (example,), str(file), dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes
    )
    return file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("build", [Residual, Token])
def test_a_file_for_any_or_one_batch_size_works_for_all(
    tmp_path: Path, build: Callable[[], nn.Module], batch: int | None
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    loaded = load_model(str(exported(model, tmp_path / "net.onnx", batch=batch)))
    for count in (1, 2, 7):
        x = torch.rand(count, *IMAGE)
        torch.testing.assert_close(loaded.module(x), model(x), rtol=1e-4, atol=1e-5)
    assert ("exported for batches of" in loaded.note) == (batch is not None)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_cannot_be_distinguished_from_the_rest_is_run_at_the_exported_size(tmp_path: Path) -> None:
    class Turned(nn.Module):
        """Select the single image of the batch."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[0].flatten()[None]

    loaded = load_model(str(exported(Turned(), tmp_path / "net.onnx", batch=1)))
    x = torch.rand(3, *IMAGE)
    assert torch.equal(loaded.module(x), x.flatten(1))
    assert "run 1 at a time" in loaded.note
    with pytest.raises(UnsupportedOperationError, match=r"ONNX network of batches of 1, .* with a dynamic batch axis"):
        lipschitz(loaded.module, IMAGE)
    with pytest.raises(UnsupportedOperationError, match="ONNX network of batches of 1"):
        enforce(loaded.module, lipschitz=1.0, input_shape=IMAGE)
    assert audit(loaded.module, IMAGE, claimed=0.5, restarts=1).verdict == "refuted"


@pytest.mark.filterwarnings("ignore")
def test_a_file_gets_the_bound_of_the_exported_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Residual().eval()
    file = exported(model, tmp_path / "net.onnx", batch=1, opset=13)  # where SiLU is written as x sigmoid(x)
    module = load_model(str(file)).module
    assert lipschitz(module, IMAGE).upper == pytest.approx(lipschitz(model, IMAGE).upper, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_weights_have_the_names_of_the_network_and_load_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    source = str(exported(model, tmp_path / "net.onnx", batch=None))
    module = load_model(source).module
    assert set(module.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        module.get_parameter("3.bias").add_(1)
    again = load_model(save_model(module, tmp_path, source=source)).module
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(again(x), model(x) + 1, rtol=1e-5, atol=1e-5)


def tiny(nodes: list[object], constants: dict[str, np.ndarray], *, opset: int = 18) -> bytes:
    """The bytes of a file from an image (n, 2, 6, 6) to `y`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *IMAGE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


def node(kind: str, *inputs: str, to: str = "y", **attributes: object) -> object:
    return helper.make_node(kind, list(inputs), [to], name=f"the {kind}", **attributes)


def refused(tmp_path: Path, content: bytes, match: str) -> None:
    """Assert that the file is refused in one sentence and quickly."""
    (tmp_path / "net.onnx").write_bytes(content)
    start = time.process_time()
    with pytest.raises(ModelError, match=match) as caught:
        load_model(str(tmp_path / "net.onnx"))
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 10


HUGE = np.array([2**40, 2], np.int64)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("ConstantOfShape", "c", to="z"), node("Add", "x", "z")], {"c": np.array([2**20, 2**20, 6], np.int64)}),
        ([node("Expand", "x", "c")], {"c": np.array([2**33, 1, 1, 1, 1], np.int64)}),
        ([node("Tile", "x", "c")], {"c": np.array([1, 2**30, 2**10, 1], np.int64)}),
        ([node("Range", "a", "b", "a", to="z"), node("Add", "x", "z")], {"a": np.int64(1), "b": np.int64(2**50)}),
        ([node("Pad", "x", "c")], {"c": np.array([0, 0, 2**40, 0, 0, 0, 0, 0], np.int64)}),
        ([node("Resize", "x", "", "c")], {"c": np.array([1, 1, 1e9, 1], np.float32)}),
        ([node("Upsample", "x", mode="nearest", scales=[1.0, 1.0, 1e30, 1.0])], {}),
        ([node("Gather", "x", "c", axis=2)], {"c": np.array([2**60], np.int64)}),
        ([node("Reshape", "x", "c")], {"c": HUGE}),
        ([node("Flatten", "x", axis=99)], {}),
        ([node("MaxPool", "x", kernel_shape=[2**40, 2**40])], {}),
        ([node("Slice", "x", "c", "c", "c", "c")], {"c": np.array([0], np.int64)}),
    ],
)  # fmt: skip
def test_implausible_sizes_are_refused_before_anything_is_allocated(
    tmp_path: Path, nodes: list[object], constants: dict[str, np.ndarray]
) -> None:
    opset = 7 if nodes[0].op_type == "Upsample" else 18  # type: ignore[attr-defined]
    refused(tmp_path, tiny(nodes, constants, opset=opset), f"its node 'the {nodes[0].op_type}'")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "kind", ["OneHot", "NonZero", "Loop", "RandomNormalLike", "SequenceAt", "DynamicQuantizeLinear"]
)
def test_unsupported_operators_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    refused(tmp_path, tiny([node(kind, "x")], {}), rf"its node 'the {kind}' \({kind}\)")


def test_operators_of_other_domains_and_sets_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, tiny([node("FusedConv", "x", domain="com.microsoft")], {}), "domain 'com.microsoft'")
    refused(tmp_path, tiny([node("Relu", "x")], {}, opset=99), "operator set is 99; 7 to 25 are supported")


def test_training_mode_and_files_without_a_graph_are_refused(tmp_path: Path) -> None:
    on = {"r": np.float32(0.5), "t": np.array(True)}
    refused(tmp_path, tiny([node("Dropout", "x", "r", "t")], on), "training mode")
    refused(tmp_path, b"", "holds no graph")
    refused(tmp_path, tiny([node("Relu", "nowhere")], {}), "takes 'nowhere', which no earlier node defines")


def test_functions_of_a_file_are_expanded_to_a_limited_depth(tmp_path: Path) -> None:
    def function(name: str, *inner: object) -> object:
        return helper.make_function("own", name, ["a"], ["b"], list(inner), [helper.make_opsetid("", 18)])

    def file(*functions: object) -> bytes:
        model = onnx.ModelProto.FromString(
            tiny([helper.make_node("F", ["x"], ["z"], domain="own"), node("Flatten", "z")], {})
        )
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.functions.extend(functions)
        return bytes(model.SerializeToString())

    (tmp_path / "net.onnx").write_bytes(file(function("F", node("Neg", "a", to="b"))))
    x = torch.rand(2, *IMAGE)
    assert torch.equal(load_model(str(tmp_path / "net.onnx")).module(x), -x.flatten(1))
    itself = helper.make_node("F", ["a"], ["b"], domain="own")
    refused(tmp_path, file(function("F", itself)), "nested more than")


def test_names_in_a_file_cannot_damage_the_module(tmp_path: Path) -> None:
    names = [
        "forward.weight",
        "class.lambda.weight",
        "a.b.c'); import os; ('.weight",
        "0.weight",
        "training",
        "_modules.weight",
    ]
    nodes = [node("Flatten", "x", to="z0")]
    constants = {}
    for k, name in enumerate(names):
        constants[name] = np.eye(72, dtype=np.float32)
        nodes.append(helper.make_node("MatMul", [f"z{k}", name], [f"z{k + 1}"]))
    nodes.append(node("Identity", f"z{len(names)}"))
    (tmp_path / "net.onnx").write_bytes(tiny(nodes, constants))
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(load_model(str(tmp_path / "net.onnx")).module(x), x.flatten(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_500_damaged_files_are_loaded_or_refused_in_one_sentence(tmp_path: Path) -> None:
    import resource

    rng = np.random.default_rng(0)
    files = [exported(build().eval(), tmp_path / f"{build.__name__}.onnx", batch=None) for build in (Residual, Token)]
    originals = [file.read_bytes() for file in files]
    for count in range(500):
        content = bytearray(originals[count % 2])
        kind = count % 5
        if kind == 0:
            content = content[: int(rng.integers(len(content)))]
        elif kind == 1:  # whole bytes, which hit sizes and types rather than weights
            place = int(rng.integers(len(content)))
            content[place : place + 4] = rng.bytes(4)
        elif kind == 2:  # an enlarged number
            place = int(rng.integers(len(content)))
            content[place : place + 1] = b"\xff\xff\xff\xff\x7f"
        else:
            for place in rng.integers(len(content), size=kind):
                content[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "net.onnx").write_bytes(bytes(content))
        start = time.monotonic()
        said = ""
        try:
            load_model(str(tmp_path / "net.onnx"))
        except ModelError as error:
            said = str(error)
        assert "\n" not in said
        assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20
