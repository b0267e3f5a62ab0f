"""Networks by name with weights from files, and hostile files, which must be refused in one sentence."""

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustres.errors import ModelError
from robustres.models import load_model

FACTORY = """
from torch import nn
def build(width=3, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width, bias=bias))
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "networks_for_source_tests.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "networks_for_source_tests:build"


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def test_a_factory_accepts_literal_keyword_arguments(factory: str) -> None:
    model = load_model(f"{factory}(width=5, bias=False)", input_shape=(3, 2, 2)).module
    assert model(torch.zeros(2, 3, 2, 2)).abs().max() == 0
    assert model(torch.rand(2, 3, 2, 2)).shape == (2, 5)


@pytest.mark.parametrize("call", ["(5)", "(width=open('x'))", "(width=", "(**{})"])
def test_other_arguments_are_refused_without_being_evaluated(factory: str, call: str) -> None:
    with pytest.raises(ModelError, match="literal keyword arguments"):
        load_model(factory + call)


def renamed(state, change):  # type: ignore[no-untyped-def]
    return {change(name): value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"net": s, "acc": 95.0, "epoch": 3},
        lambda s: {"model_state": s, "loss": torch.tensor(0.5), "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
        lambda s: {"params": s, "epoch": 1},
        lambda s: {"ema": {"module": s}},
        lambda s: {"student": s, "teacher": renamed(s, lambda name: name + "x")},
        lambda s: {"model": s, "model_ema": {name: value + 1 for name, value in s.items()}},
        lambda s: {"ema": {name: value + 1 for name, value in s.items()}, "net": renamed(s, lambda n: f"net.{n}")},
        lambda s: s | {"epoch": 3},
        lambda s: renamed(s, lambda name: f"module.{name}"),
        lambda s: renamed(s, lambda name: f"module._orig_mod.model.{name}"),
        lambda s: renamed(s, lambda name: name.replace(".", "._orig_mod.")),
        lambda s: {"n_averaged": torch.tensor(3), **renamed(s, lambda name: f"module.{name}")},
    ],
)
def test_weights_of_a_training_script_are_loaded_into_the_network_of_a_factory(
    factory: str, tmp_path: Path, wrap
) -> None:  # type: ignore[no-untyped-def]
    trained, x = linear(), torch.rand(4, 3, 2, 2)
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pth")
    assert torch.equal(load_model(f"{factory}@{tmp_path / 'weights.pth'}").module(x), trained(x))
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    assert torch.equal(load_model(f"{factory}@{tmp_path / 'weights.safetensors'}").module(x), trained(x))


def test_a_missing_batch_counter_is_no_missing_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normalising_networks.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    network = load_model("normalising_networks:build").module
    old = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save({"net": old}, tmp_path / "old.pth")
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(load_model(f"normalising_networks:build@{tmp_path / 'old.pth'}").module(x), network(x))
    old.pop("1.running_var")
    torch.save(old, tmp_path / "old.pth")
    with pytest.raises(ModelError, match=r"lacks 1\.running_var"):
        load_model(f"normalising_networks:build@{tmp_path / 'old.pth'}")


class Bomb:
    """Create a file if unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_a_malicious_pickle_is_not_executed(factory: str, tmp_path: Path) -> None:
    trace = tmp_path / "exploded"
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weight": Bomb(trace)}, protocol=2))
    torch.save({"weight": Bomb(trace)}, tmp_path / "zipped.pth")
    for name in ("bomb.pth", "zipped.pth"):
        with pytest.raises(ModelError, match="as plain weights"):
            load_model(f"{factory}@{tmp_path / name}")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: {"1.weight": torch.zeros(3, 12)}, "it lacks 1.bias"),
        (lambda: {**linear().state_dict(), "2.weight": torch.zeros(1)}, "has unknown 2.weight"),
        (lambda: {"1.weight": torch.zeros(3, 11), "1.bias": torch.zeros(3)}, "has shape"),
        (lambda: {"1.weight": torch.full((3, 12), torch.nan), "1.bias": torch.zeros(3)}, "NaN or infinite"),
        (lambda: {"1.weight": torch.zeros(3, 12).to_sparse(), "1.bias": torch.zeros(3)}, "1.weight as a sparse"),
        (lambda: {"1.weight": torch.zeros(3, 12, device="meta"), "1.bias": torch.zeros(3)}, r"empty \(meta\) tensor"),
        (
            lambda: {**linear().state_dict(), "args": Namespace(lr=1)},
            "contains objects of argparse.Namespace, which can only",
        ),
        (linear, "contains objects of torch.nn.modules"),
        (lambda: [1, 2], "holds no state_dict"),
        (lambda: torch.zeros(3), "holds no state_dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused(factory: str, tmp_path: Path, content, sentence: str) -> None:  # type: ignore[no-untyped-def]
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=sentence):
        load_model(f"{factory}@{tmp_path / 'weights.pth'}")


def test_weights_that_would_expand_far_beyond_the_size_of_their_file_are_refused(factory: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/0", bytes(2**26 + 1))
    with pytest.raises(ModelError, match="would unpack to"):
        load_model(f"{factory}@{file}")


def test_truncated_and_missing_weights_are_refused(factory: str, tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="as plain weights"):
        load_model(f"{factory}@{tmp_path / 'weights.pth'}")
    with pytest.raises(ModelError, match="there is no weights file"):
        load_model(f"{factory}@{tmp_path / 'nothing.pth'}")
    with pytest.raises(ModelError, match="but not the network"):
        load_model(str(tmp_path / "weights.pth"))


def test_torchvision_networks_take_weights_from_a_file_and_download_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trained = models.get_model("squeezenet1_1").eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    loaded = load_model(f"torchvision:squeezenet1_1@{tmp_path / 'weights.pth'}", input_shape=(3, 64, 64)).module
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(x), trained(x))
    with pytest.raises(ModelError, match="not on this machine"):
        load_model("torchvision:squeezenet1_1")
    published = models.get_model_weights("squeezenet1_1").DEFAULT
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(trained.state_dict(), cache / Path(published.url).name)
    found = load_model("torchvision:squeezenet1_1")  # with the normalisation used in training
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225" in found.note
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        assert torch.allclose(found.module(x), trained((x - mean[:, None, None]) / std[:, None, None]), atol=1e-5)
    with pytest.raises(ModelError, match="has no classifier"):
        load_model("torchvision:resnet_of_mine")


def test_timm_networks_take_weights_from_a_file_and_download_nothing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    trained = timm.create_model("resnet10t", num_classes=1000).eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    loaded = load_model(f"timm:resnet10t@{tmp_path / 'weights.pth'}").module
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(x), trained(x))
    with pytest.raises(ModelError, match="not on this machine"):
        load_model("timm:resnet10t")
    with pytest.raises(ModelError, match="timm has no model"):
        load_model("timm:resnet_of_mine")
