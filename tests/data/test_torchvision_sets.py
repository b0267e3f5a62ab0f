"""torchvision's layouts are read offline; nothing is downloaded unless requested."""

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from robustres.data import load_data
from robustres.errors import DataError


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 whose digests are patched into torchvision."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists = {}
    for name, samples in (("data_batch_1", 40), ("test_batch", 12)):
        pixels = generator.integers(0, 256, (samples, 3072), dtype=np.uint8)
        lists[name] = [[name, write(name, {"data": pixels, "labels": [i % 2 for i in range(samples)]})]]
    names = ["airplane", "automobile"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists["data_batch_1"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists["test_batch"])
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


def test_cifar10_is_read_and_its_validation_part_held_out(cifar: Path) -> None:
    parts = {name: load_data("cifar10", root=cifar, split=name) for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert {name: len(part) for name, part in parts.items()} == {"train": 36, "validation": 4, "test": 12}
    assert parts["test"].image_shape == (3, 32, 32)
    assert parts["test"].class_names == ("airplane", "automobile")
    with (cifar / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        first = pickle.load(file)["data"][0].reshape(3, 32, 32)
    np.testing.assert_array_equal((parts["test"].images[0] * 255).round().numpy(), first)
    assert len(load_data("cifar10", root=cifar, limit=3)) == 3


def test_a_changed_file_is_refused_before_it_is_opened(cifar: Path) -> None:
    file = cifar / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DataError, match="complete and undamaged"):
        load_data("cifar10", root=cifar)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100"])
def test_a_missing_data_set_is_not_downloaded_and_the_message_gives_advice(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs the folder that contains"):
        load_data(name)
    with pytest.raises(DataError, match="download them with --download"):
        load_data(name, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_without_a_connection_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"cannot download mnist .*this needs a connection") as refusal:
        load_data("mnist", root=tmp_path, download=True)
    assert "\n" not in str(refusal.value)


def test_the_shared_mnist_and_cifar_files_are_read(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (shared / "data" / "mnist").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    found = load_data("mnist", root=tmp_path)
    assert (len(found), found.image_shape, found.class_names) == (10_000, (1, 28, 28), tuple("0123456789"))
    assert found.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
