"""Every source of data, read from files that the tests write, and everything that can be wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustres.data import SPLITS, load_data, stratified_parts
from robustres.errors import DataError


def write_arrays(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)


def write_images(folder: Path, classes: int = 2, each: int = 3, mode: str = "RGB") -> None:
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            shape = (5, 4, 3) if mode == "RGB" else (5, 4)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")


def test_the_embedded_digits_are_the_whole_set_in_three_disjoint_stratified_parts() -> None:
    parts = {split: load_data("digits", split=split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1258, "validation": 179, "test": 360}
    rows = torch.cat([part.images.flatten(1) for part in parts.values()])
    assert len(rows.unique(dim=0)) == 1797
    assert parts["test"].images.mul(16).frac().abs().max() == 0
    assert parts["test"].labels.bincount().min() >= 34


def test_the_embedded_digits_have_the_expected_digest() -> None:
    assert load_data("digits").sha256.startswith("0fc961f2")


@pytest.mark.parametrize("spec", ["", "digit", "npy", "npy:", "folder:", "cifar", "npz:", "hf-disk"])
def test_an_unknown_source_is_refused_with_a_list_of_the_known_ones(spec: str) -> None:
    with pytest.raises(
        DataError, match=r"data must be one of digits, mnist, .*folder:DIR, npy:DIR, npz:FILE and hf-disk"
    ):
        load_data(spec)


def test_an_unknown_split_and_an_empty_limit_are_refused() -> None:
    with pytest.raises(DataError, match="split must be one of"):
        load_data("digits", split="dev")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="limit must be at least 1"):
        load_data("digits", limit=0)


def test_numpy_arrays_become_channel_first_images_in_the_unit_range(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    write_arrays(tmp_path, stored, np.array([0, 1, 2, 0, 1, 2]))
    found = load_data(f"npy:{tmp_path}", limit=4)
    assert found.image_shape == (3, 5, 4)
    assert found.class_names == ("0", "1", "2")
    np.testing.assert_array_equal((found.images * 255).round().numpy(), stored[:4].transpose(0, 3, 1, 2))


def test_numpy_floats_in_the_unit_range_are_used_unchanged(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).random((3, 4, 4, 1))
    write_arrays(tmp_path, stored, np.arange(3))
    np.testing.assert_allclose(load_data(f"npy:{tmp_path}").images[:, 0].numpy(), stored[..., 0], rtol=1e-6)


def test_class_names_come_from_a_file_beside_the_arrays(tmp_path: Path) -> None:
    write_arrays(tmp_path, np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))
    (tmp_path / "classes.txt").write_text("\ufeffcat\r\ndog\ncow\n", encoding="utf-8")  # as written on Windows
    assert load_data(f"npy:{tmp_path}").class_names == ("cat", "dog", "cow")
    write_arrays(tmp_path, np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 3]))
    with pytest.raises(DataError, match=r"label 3, outside the classes 0 .. 2"):
        load_data(f"npy:{tmp_path}")


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), r"must have shape \(N, H, W, C\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.array([0, 1]), r"move it with images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0.0, 1.0]), "must be integers"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0]), "2 images but 1 labels"),
        (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int64), "there are no images"),
        (np.zeros((2, 4, 4, 1), np.int32), np.array([0, 1]), "must be uint8"),
        (np.full((2, 4, 4, 1), np.nan), np.array([0, 1]), "image 0 holds a NaN"),
        (np.full((2, 4, 4, 1), -1.5), np.array([0, 1]), "look already normalised"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1]), "outside the classes"),
    ],
)
def test_unusable_arrays_are_refused_in_one_sentence(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, sentence: str
) -> None:
    write_arrays(tmp_path, images, labels)
    with pytest.raises(DataError, match=sentence):
        load_data(f"npy:{tmp_path}")


def test_missing_and_damaged_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"npy:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"there is no file .*images\.npy"):
        load_data(f"npy:{tmp_path}")
    write_arrays(tmp_path, np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))
    (tmp_path / "labels.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npy:{tmp_path}")


def test_pickled_arrays_are_never_executed(tmp_path: Path) -> None:
    write_arrays(tmp_path, np.zeros((1, 4, 4, 1), np.uint8), np.array([0]))
    np.save(tmp_path / "labels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npy:{tmp_path}")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_the_classes_of_an_image_folder_are_its_directories(tmp_path: Path, mode: str, channels: int) -> None:
    write_images(tmp_path, mode=mode)
    found = load_data(f"folder:{tmp_path}")
    assert found.class_names == ("class0", "class1")
    assert found.image_shape == (channels, 5, 4)
    assert found.labels.bincount().tolist() == [3, 3]


def test_a_limit_on_an_image_folder_takes_from_all_classes_in_turn(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert load_data(f"folder:{tmp_path}", limit=4).labels.tolist() == [0, 1, 0, 1]


def test_splits_of_a_folder_come_from_its_subfolders_and_validation_is_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "train", each=20)
    write_images(tmp_path / "test", each=2)
    sizes = [len(load_data(f"folder:{tmp_path}", split=split)) for split in SPLITS]
    assert sizes == [36, 4, 4]
    with pytest.raises(DataError, match="has no train split"):
        load_data(f"folder:{tmp_path / 'test'}", split="train")


def test_unusable_image_folders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read the image"):
        load_data(f"folder:{tmp_path}")
    Image.new("L", (4, 4)).save(tmp_path / "a" / "0.png")
    Image.new("L", (5, 4)).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match="bring all images to one size"):
        load_data(f"folder:{tmp_path}")


def test_mnist_requires_its_folder_and_downloads_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-root"):
        load_data("mnist")
    with pytest.raises(DataError, match="cannot read mnist"):
        load_data("mnist", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_mnist_is_read_from_the_idx_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        header = np.array([0x803, 40, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, 40], ">i4").tobytes() + labels.tobytes())
    test = load_data("mnist", root=tmp_path)
    np.testing.assert_array_equal((test.images[:, 0] * 255).round().numpy(), pixels)
    assert len(load_data("mnist", root=tmp_path, split="train")) == 40


def test_stratified_parts_are_disjoint_complete_and_repeatable() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    parts = stratified_parts(labels, [0.1, 0.5])
    assert torch.cat(parts).sort().values.tolist() == list(range(40))
    assert [labels[part].bincount().tolist() for part in parts] == [[3, 1], [15, 5], [12, 4]]
    assert all(torch.equal(a, b) for a, b in zip(parts, stratified_parts(labels, [0.1, 0.5]), strict=True))
