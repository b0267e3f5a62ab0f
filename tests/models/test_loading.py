"""Models from checkpoints, factories and ONNX files, and everything that can be wrong with them."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustres.errors import ModelError
from robustres.models import Normalised, load_model, preset, residual_net, save_checkpoint

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


def tiny() -> nn.Module:
    return residual_net(block="linear", depth=1, width=4, image_shape=(1, 8, 8), classes=3)


def test_a_checkpoint_restores_the_same_function_and_digest(tmp_path: Path) -> None:
    model = preset("residual-tiny").eval()
    file = save_checkpoint(model, tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    loaded, again = (load_model(place, input_shape=(1, 8, 8)) for place in (str(file), file))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.module(x), model(x))
    assert loaded.sha256 == again.sha256 == load_model(model).sha256
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert not loaded.module.training


def test_a_checkpoint_keeps_the_normalisation(tmp_path: Path) -> None:
    inner = residual_net(block="plain", depth=1, width=4, image_shape=(3, 8, 8), classes=3)
    model = Normalised(inner, **STATISTICS).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_model(str(save_checkpoint(model, tmp_path / "net"))).module(x), model(x))


def test_the_digest_depends_on_the_weights() -> None:
    model = tiny()
    before = load_model(model).sha256
    with torch.no_grad():
        model.head.bias[0] += 1
    assert load_model(model).sha256 != before


def test_only_described_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"package\.module:factory"):
        save_checkpoint(nn.Linear(3, 2), tmp_path / "net")


def spoil_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 10 * 2**30) + file.read_bytes()[8:])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def remove_description(file: Path) -> None:
    file.with_suffix(".json").unlink()


def describe(file: Path, **changes: object) -> None:
    path = file.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def widen(file: Path) -> None:
    architecture = json.loads(file.with_suffix(".json").read_text())["architecture"]
    describe(file, architecture={**architecture, "width": 8})


def deepen(file: Path) -> None:
    architecture = json.loads(file.with_suffix(".json").read_text())["architecture"]
    describe(file, architecture={**architecture, "depth": 2})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (spoil_header, "as safetensors"),
        (truncate, "as safetensors"),
        (remove_description, "beside the weights"),
        (lambda file: file.with_suffix(".json").write_text("{"), "as JSON"),
        (lambda file: file.with_suffix(".json").write_text("[1]"), "not a description of a network"),
        (lambda file: describe(file, version=99), "version 99"),
        (lambda file: describe(file, architecture=None), "has no architecture"),
        (widen, "has shape"),
        (deepen, "it lacks blocks.1"),
        (lambda file: file.unlink(), "there is no checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    file = save_checkpoint(tiny(), tmp_path / "net")
    damage(file)
    with pytest.raises(ModelError, match=sentence) as refusal:
        load_model(str(file))
    assert "\n" not in str(refusal.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = residual_net(block="plain", depth=1, width=4, image_shape=(1, 8, 8), classes=3)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    file = save_checkpoint(model, tmp_path / "net")
    with pytest.raises(ModelError, match=r"NaN or infinite values in head\.bias"):
        load_model(str(file))


def test_a_factory_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_for_this_test.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise RuntimeError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_model("my_networks_for_this_test:build", input_shape=(3, 2, 2))
    assert loaded.module(torch.rand(5, 3, 2, 2)).shape == (5, 3)
    for name, sentence in [("number", "must return an nn.Module"), ("broken", "no weights"), ("x", "cannot import")]:
        with pytest.raises(ModelError, match=sentence):
            load_model(f"my_networks_for_this_test:{name}")
    with pytest.raises(ModelError, match="cannot import"):
        load_model("no_such_package_anywhere:build")


@pytest.mark.parametrize("spec", ["", "net", ":factory", "package:"])
def test_an_unknown_source_is_refused_with_a_list_of_the_known_ones(spec: str) -> None:
    with pytest.raises(ModelError, match="a model must be"):
        load_model(spec)


def test_a_model_that_does_not_classify_these_images_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot process images of shape"):
        load_model(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), input_shape=(3, 4, 4))
    with pytest.raises(ModelError, match="must return logits of shape"):
        load_model(nn.Flatten(0), input_shape=(3, 4, 4))


def test_a_standard_deviation_alone_is_accepted_and_a_mean_alone_is_refused() -> None:
    model = nn.Flatten()
    x = torch.rand(2, 1, 2, 2)
    assert torch.allclose(load_model(model, std=(0.5,)).module(x), 2 * x.flatten(1))
    with pytest.raises(ModelError, match="mean was given without std"):
        load_model(model, mean=(0.5,))


@pytest.mark.parametrize(
    ("mean", "std", "meant"),
    [((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "123.675/255"), ((0.5,), (58.395,), "58.395/255")],
)
def test_statistics_in_8_bit_units_are_refused_with_the_likely_intention(
    mean: tuple[float, ...], std: tuple[float, ...], meant: str
) -> None:
    with pytest.raises(ModelError, match=f"did you mean {meant}"):
        load_model(nn.Flatten(), mean=mean, std=std)


def test_the_published_residual_network_classifies_86_of_100_images(shared: Path) -> None:
    pytest.importorskip("onnxruntime")
    from robustres.data import load_data

    data = load_data(f"npy:{shared / 'data' / 'cifar10-100'}")
    model = load_model(str(shared / "models" / "resnet_2b.onnx"), input_shape=data.image_shape, **STATISTICS)
    with torch.no_grad():
        predictions = model.module(data.images).argmax(dim=1)
    assert int((predictions == data.labels).sum()) == 86


def write_onnx(file: Path, *, external: str | None = None, operator: str = "Flatten") -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((12, 3), np.float32), "weight")
    if external is not None:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", external
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x"], ["flat"]), onnx.helper.make_node("MatMul", ["flat", "weight"], ["z"])],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 2, 2])],
        [onnx.helper.make_tensor_value_info("z", 1, ["n", 3])],
        [weight],
    )
    file.write_bytes(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
        ).SerializeToString()
    )


def test_an_onnx_file_is_converted_and_compared(tmp_path: Path) -> None:
    write_onnx(tmp_path / "net.onnx")
    loaded = load_model(str(tmp_path / "net.onnx"), input_shape=(3, 2, 2))
    x = torch.rand(4, 3, 2, 2)
    assert torch.allclose(loaded.module(x), x.flatten(1).sum(1, keepdim=True).expand(4, 3), atol=1e-5)


def test_a_wrong_conversion_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from robustres.models.sources.onnx.registry import OPERATORS

    write_onnx(tmp_path / "net.onnx")
    versions, flatten = OPERATORS["Flatten"]
    monkeypatch.setitem(OPERATORS, "Flatten", (versions, lambda call: torch.add(flatten(call), 1)))
    with pytest.raises(ModelError, match="deviates from onnxruntime"):
        load_model(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("external", ["../secret.bin", "/etc/hostname"])
def test_onnx_weights_outside_the_folder_are_refused(tmp_path: Path, external: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(144))
    folder = tmp_path / "inside"
    folder.mkdir()
    write_onnx(folder / "net.onnx", external=external)
    with pytest.raises(ModelError, match="cannot read"):
        load_model(str(folder / "net.onnx"))


def test_damaged_and_missing_onnx_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelError, match="there is no ONNX file"):
        load_model(str(tmp_path / "net.onnx"))
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12garbage")
    with pytest.raises(ModelError, match="cannot read"):
        load_model(str(tmp_path / "net.onnx"))
    write_onnx(tmp_path / "net.onnx", operator="NoSuchOperator")
    with pytest.raises(ModelError, match="cannot"):
        load_model(str(tmp_path / "net.onnx"))
