"""Networks of the Hugging Face hub from the cache of its client, and the messages if they are not there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustres.errors import ModelError
from robustres.models import load_model, preset, save_checkpoint

hub = pytest.importorskip("huggingface_hub")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Create the folder of a repository in a cache with the client's layout, and disable the connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def make(name: str) -> Path:
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        files = folder / "snapshots" / REVISION
        files.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(REVISION)
        return files

    return make


def test_a_checkpoint_of_robustres_comes_from_the_cache(repository: Callable[[str], Path]) -> None:
    model = preset("residual-tiny").eval()
    save_checkpoint(model, repository("lab/tiny") / "model")
    loaded, x = load_model("hf:lab/tiny", input_shape=(1, 8, 8)), torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.module(x), model(x))
    assert loaded.source == "hf:lab/tiny"


@pytest.mark.parametrize("own_weights", [False, True])
def test_a_network_of_timm_comes_from_the_cache_with_its_normalisation(
    repository: Callable[[str], Path], tmp_path: Path, own_weights: bool
) -> None:
    timm = pytest.importorskip("timm")
    trained = timm.create_model("resnet10t", num_classes=7).eval()
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]}
    folder = repository("timm/mine")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": statistics})
    )
    save_file(trained.state_dict(), (tmp_path / "w.safetensors") if own_weights else folder / "model.safetensors")
    spec = f"hf:timm/mine@{tmp_path / 'w.safetensors'}" if own_weights else "hf:timm/mine"
    loaded, x = load_model(spec, input_shape=(3, 64, 64)).module, torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(statistics[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(loaded(x), trained((x - mean) / std), atol=1e-5)


def test_a_name_of_timm_comes_from_the_cache_without_a_download(repository: Callable[[str], Path]) -> None:
    timm = pytest.importorskip("timm")
    trained, published = timm.create_model("resnet10t").eval(), timm.get_pretrained_cfg("resnet10t")
    with pytest.raises(ModelError, match="not on this machine"):
        load_model("timm:resnet10t")
    save_file(trained.state_dict(), repository(published.hf_hub_id) / "model.safetensors")
    loaded, x = load_model("timm:resnet10t").module, torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(getattr(published, word))[:, None, None] for word in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(loaded(x), trained((x - mean) / std), atol=1e-5)


def test_a_network_that_is_not_cached_is_not_downloaded_unless_requested_and_the_message_says_so(
    repository: Callable[[str], Path],
) -> None:
    with pytest.raises(ModelError, match=r"not in the hub's cache.*--download"):
        load_model("hf:lab/absent")
    with pytest.raises(ModelError, match=r"cannot (reach|fetch)"):
        load_model("hf:lab/absent", download=True)
    with pytest.raises(ModelError, match="cannot fetch"):
        load_model("hf:not/a/name")


def test_other_and_broken_repositories_are_refused_in_one_sentence(repository: Callable[[str], Path]) -> None:
    folder = repository("lab/language")
    (folder / "config.json").write_text('{"task": "translation"}')
    with pytest.raises(ModelError, match=r"package\.module:function"):
        load_model("hf:lab/language")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="as JSON"):
        load_model("hf:lab/language")
    pytest.importorskip("timm")
    (folder / "config.json").write_text('{"architecture": "no_such_network"}')
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="timm cannot build"):
        load_model("hf:lab/language")
    (folder / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 2}')
    with pytest.raises(ModelError, match=r"as safetensors|more than its file has bytes"):
        load_model("hf:lab/language")


class Standardised(nn.Module):
    """A classifier in the style of RobustBench: images in [0, 1], normalisation inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = torch.tensor([0.5])[:, None, None], torch.tensor([0.25])[:, None, None]
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(((x - self.mu) / self.sigma).flatten(1))
        return logits


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_robustbench_classifiers_load_with_the_wrappers_of_their_checkpoints(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(__file__).read_text()
    body = source[source.index("class Standardised") : source.index('@pytest.mark.parametrize("prefix"')]
    (tmp_path / "robustbench_style.py").write_text(f"import torch\nfrom torch import nn\n\n{body}")
    monkeypatch.syspath_prepend(str(tmp_path))
    trained, x = Standardised(), torch.rand(4, 1, 8, 8)
    weights = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "checkpoint.pt")
    loaded = load_model(f"robustbench_style:Standardised@{tmp_path / 'checkpoint.pt'}", input_shape=(1, 8, 8))
    assert torch.equal(loaded.module(x), trained(x))


def test_no_request_is_sent_without_download(
    repository: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    pytest.importorskip("timm")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    for name in ("socket.socket.connect", "socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(name, forbidden)
    for config in (
        {"architecture": "hf-hub:somebody/else"},
        {"architecture": "resnet10t", "model_args": {"checkpoint_path": "/etc/passwd"}},
        {"architecture": "resnet10t", "num_classes": 10**9},
        {"architecture": "resnet10t", "model_args": {"depth": []}},
    ):
        folder = repository(f"lab/{abs(hash(str(config)))}")
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"more than its file has bytes|cannot build"):
            load_model(f"hf:{folder.parents[1].name.removeprefix('models--').replace('--', '/')}")
    with pytest.raises(ModelError, match="ask for the download with --download"):
        load_model("hf:nobody/nothing")
