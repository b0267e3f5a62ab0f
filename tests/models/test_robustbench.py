"""Networks by their RobustBench names; with the package if it is installed, else with a stand-in of its interface."""

import sys
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models import load_model


class Data(Enum):
    cifar_10 = "cifar10"


class Threat(Enum):
    Linf = "Linf"
    L2 = "L2"


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the two modules of robustbench 1.1.1 that are used, with one network, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    zoo, utils = ModuleType("robustbench.model_zoo"), ModuleType("robustbench.utils")
    zoo.model_dicts = {Data.cifar_10: {Threat.Linf: {"Small2020": {"model": small}}, Threat.L2: {}}}  # type: ignore[attr-defined]

    def load(name: str, model_dir: Path, dataset: str, threat: str) -> nn.Module:
        file = Path(model_dir) / dataset / threat / f"{name}.pt"
        if not file.exists():
            raise OSError("the download would begin here")
        model = small()
        model.load_state_dict(torch.load(file, weights_only=True))
        return model

    utils.load_model = load  # type: ignore[attr-defined]
    for module in (ModuleType("robustbench"), zoo, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("file", "at"), [("models/cifar10/Linf/Small2020.pt", ""), ("own.pt", "@own.pt")])
def test_weights_are_read_from_the_folder_of_robustbench_or_from_a_given_file(file: str, at: str) -> None:
    trained, x = small(), torch.rand(2, 3, 2, 2)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(trained.state_dict(), file)
    loaded = load_model(f"robustbench:cifar10/Linf/Small2020{at}", input_shape=(3, 2, 2))
    assert torch.equal(loaded.module(x), trained(x))


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_downloaded_unless_requested_and_names_are_corrected() -> None:
    name = "robustbench:cifar10/Linf/Small2020"
    with pytest.raises(ModelError, match=r"not in models/cifar10/Linf/Small2020\.pt; ask for the download"):
        load_model(name)
    with pytest.raises(ModelError, match="the download would begin here"):
        load_model(name, download=True)
    with pytest.raises(ModelError, match="did you mean Small2020"):
        load_model("robustbench:cifar10/Linf/Smal2020")
    with pytest.raises(ModelError, match=r"with one of cifar10/Linf, cifar10/L2, got 'Small2020'"):
        load_model("robustbench:Small2020")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    for found, error in ((None, MissingExtraError), (object(), ModelError)):
        monkeypatch.setattr("robustres.models.sources.robustbench_zoo.find_spec", lambda _, found=found: found)
        with pytest.raises(error, match=r"pip install 'robustres\[robustbench\]'"):
            load_model("robustbench:cifar10/Linf/Wong2020Fast")


def test_a_published_network_takes_weights_from_a_file(tmp_path: Path) -> None:
    reason = "the extra `robustbench` is not installed, or not wholly"
    pytest.importorskip("robustbench.utils", reason=reason, exc_type=ImportError)
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    trained = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]["Wong2020Fast"]["model"]().eval()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in trained.state_dict().items()}}, tmp_path / "w.pt"
    )
    loaded = load_model(f"robustbench:cifar10/Linf/Wong2020Fast@{tmp_path / 'w.pt'}", input_shape=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), trained(x))
