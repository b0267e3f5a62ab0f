"""Image classifiers of transformers, from a folder or in memory: no repository code runs, nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustres
from robustres.errors import ModelError
from robustres.models import load_model

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
pytest.importorskip("huggingface_hub")


@pytest.fixture
def classifier() -> Any:
    """A residual network of four layers for images of 8 x 8 with random weights."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.AutoModelForImageClassification.from_config(config).eval()


@pytest.fixture
def folder(classifier: Any, tmp_path: Path) -> Path:
    """The same network, as written by `save_pretrained`."""
    classifier.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def answers(classifier: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = classifier(pixel_values=x).logits
    return logits


def rewritten(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | changes))


def test_a_folder_written_by_save_pretrained_is_loaded_by_its_path(classifier: Any, folder: Path) -> None:
    loaded, x = load_model(f"hf:{folder}", input_shape=(1, 8, 8)), torch.rand(3, 1, 8, 8)
    assert torch.allclose(loaded.module(x), answers(classifier, x), atol=1e-6)
    assert loaded.note == ""


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": True}, 0.5, 0.25),
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [0.5], "image_std": [0.25], "rescale_factor": 1 / 127.5, "rescale_offset": True}, 0.75, 0.125),
    ],
)
def test_the_pixel_transform_of_the_processor_becomes_part_of_the_network(
    classifier: Any, folder: Path, processor: dict[str, object], mean: float, std: float
) -> None:
    rewritten(folder, "preprocessor_config.json", **processor)
    loaded, x = load_model(f"hf:{folder}").module, torch.rand(3, 1, 8, 8)
    assert torch.allclose(loaded(x), answers(classifier, (x - mean) / std), atol=1e-5)


def test_statistics_other_than_those_of_the_network_are_refused(folder: Path) -> None:
    rewritten(folder, "preprocessor_config.json", image_mean=[0.5], image_std=[0.25])
    x = torch.rand(3, 1, 8, 8)
    own, same = load_model(f"hf:{folder}"), load_model(f"hf:{folder}", mean=(0.5,), std=(0.25,))
    assert "mean 0.5; std 0.25" in own.note
    assert torch.equal(own.module(x), same.module(x))
    with pytest.raises(ModelError, match="leave mean and std out"):
        load_model(f"hf:{folder}", mean=(0.4,), std=(0.25,))


def test_a_classifier_in_memory_is_evaluated_in_one_line(classifier: Any, tmp_path: Path) -> None:
    settings = robustres.Settings(eps={"l2": (0.1,)}, attacks=("fgsm",), joint=False)
    data = (torch.rand(4, 1, 8, 8), answers(classifier, torch.zeros(4, 1, 8, 8)).argmax(1))
    run = robustres.evaluate(classifier, data, tmp_path / "run", settings)
    assert len(run.samples) == 4
    assert len(run.certificates) > 0  # all of its operations have bounds


def test_no_network_connection_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    for name in ("socket.socket.connect", "socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(name, forbidden)
    remote = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "somebody/code--code.Model"}
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    rewritten(folder, "config.json", auto_map=remote, quantization_config=quantised)
    rewritten(folder, "config.json", _attn_implementation="somebody/kernel", attn_implementation="somebody/kernel")
    assert load_model(f"hf:{folder}", input_shape=(1, 8, 8)).parameters > 0
    rewritten(folder, "config.json", hidden_act="somebody/activation")
    with pytest.raises(ModelError, match="refers to 'somebody/activation' in hidden_act"):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "bert"}, "for which transformers has no image classifier"),
        ({"model_type": "timm_wrapper"}, "for which transformers has no image classifier"),
        ({"hidden_sizes": "many"}, "transformers cannot build the 'resnet'"),
        ({"embedding_size": 10**6}, "more than its file has bytes"),
        ({"hidden_sizes": [4, 4]}, "does not fit"),
    ],
)
def test_unsuitable_configurations_are_refused_in_one_sentence(
    folder: Path, changes: dict[str, object], sentence: str
) -> None:
    rewritten(folder, "config.json", **changes)
    with pytest.raises(ModelError, match=sentence):
        load_model(f"hf:{folder}")


def test_a_folder_without_weights_is_refused_with_the_missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_model(f"hf:{folder}")
