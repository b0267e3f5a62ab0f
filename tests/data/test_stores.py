"""Every storage format gives the same images, and only the requested ones are read."""

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustres.data import SPLITS, ImageSet, load_data, read_ahead
from robustres.data.pixels import ArrayPixels, ChosenPixels, chunks
from robustres.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_npy(folder: Path) -> str:
    np.save(folder / "images.npy", PIXELS)
    np.save(folder / "labels.npy", LABELS)
    return f"npy:{folder}"


def write_npz(folder: Path) -> str:
    np.savez(folder / "set.npz", images=PIXELS, labels=LABELS)
    return f"npz:{folder / 'set.npz'}"


def write_compressed(folder: Path) -> str:
    np.savez_compressed(folder / "small.npz", images=PIXELS, labels=LABELS)
    return f"npz:{folder / 'small.npz'}"


def write_folder(folder: Path) -> str:
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        file = folder / "images" / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(pixels))
    return f"folder:{folder / 'images'}"


def write_saved(folder: Path, rows: slice = slice(None), **change: object) -> str:
    """The layout of `save_to_disk`, in two files."""
    folder.mkdir(exist_ok=True)
    images = [{"bytes": encoded(pixels), "path": None} for pixels in PIXELS[rows]]
    table = pa.table({"image": images, "label": LABELS[rows], **change})
    files = []
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        files.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pa.ipc.new_stream(folder / files[-1]["filename"], table.schema) as stream:
            stream.write_table(part)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["0", "1", "2"]}}
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return f"hf-disk:{folder}"


@pytest.mark.parametrize("write", [write_npy, write_npz, write_compressed, write_folder, write_saved])
def test_every_store_gives_the_same_images_the_same_digest_and_single_images(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    expected = ImageSet(images, torch.from_numpy(LABELS), ("0", "1", "2"), "tensor")
    found = load_data(write(tmp_path))
    assert found.sha256 == expected.sha256
    assert found.labels.tolist() == LABELS.tolist()
    assert found.class_names == expected.class_names
    assert torch.equal(found.batch(torch.tensor([4, 1])), images[[4, 1]])
    assert found.extremes() == (float(images.min()), float(images.max()))
    assert torch.equal(found.images, images)


def test_arrays_on_disk_are_memory_mapped_and_stay_8_bit(tmp_path: Path) -> None:
    for spec in (write_npy(tmp_path), write_npz(tmp_path)):
        stored = load_data(spec).pixels
        assert isinstance(stored, ArrayPixels)
        assert isinstance(stored.array, np.memmap)
        assert stored.array.dtype == np.uint8


def test_a_data_set_written_by_the_library_datasets_is_read() -> None:
    # datasets 5.2.0, save_to_disk; the digest is of the pixels as that library gives them.
    found = load_data(f"hf-disk:{Path(__file__).parent / 'written_by_datasets'}")
    assert found.class_names == ("cat", "dog", "cow")
    assert found.labels.tolist() == [2, 1, 2]
    assert found.sha256 == "88258e749864d41aaa8e6bc411d3333a887a33c686d372d25d05f467a584c338"


def test_splits_are_named_with_the_seed_of_their_draw(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS * 0, test_images=PIXELS, test_labels=LABELS)
    found = {split: load_data(f"npz:{tmp_path / 'a.npz'}", split=split) for split in SPLITS}
    assert {split: (len(part), part.split) for split, part in found.items()} == {
        "train": (5, "train"),
        "validation": (1, "validation"),
        "test": (6, "test"),
    }
    assert found["train"].split_seed == found["validation"].split_seed == 20_240_501
    assert found["test"].split_seed is None
    write_saved(tmp_path / "test")
    write_saved(tmp_path / "validation", slice(0, 4))
    write_saved(tmp_path / "train", slice(1, 6))
    sizes = {split: len(load_data(f"hf-disk:{tmp_path}", split=split)) for split in SPLITS}
    assert sizes == {"train": 5, "validation": 4, "test": 6}
    assert load_data(f"hf-disk:{tmp_path}", split="train").split_seed is None


def test_data_with_another_digest_than_expected_are_refused() -> None:
    pixels = torch.zeros(1, 1, 2, 2)
    with pytest.raises(DataError, match="expected 0000; the data has changed or was damaged: download it again"):
        ImageSet(pixels, torch.tensor([0]), ("a",), "here", sha256="0000")


def test_unusable_archives_are_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(DataError, match="there is no file"):
        load_data(f"npz:{file}")
    file.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read .* as a NumPy archive"):
        load_data(f"npz:{file}")
    np.savez(file, x=PIXELS)
    with pytest.raises(DataError, match="has no array test_images, which the test split needs, only x"):
        load_data(f"npz:{file}")
    np.savez(file, images=PIXELS, labels=np.array([{}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npz:{file}")
    np.savez(file, images=PIXELS[..., 0], labels=LABELS)
    with pytest.raises(DataError, match=r"images\[..., None\]"):
        load_data(f"npz:{file}")
    np.savez(file, images=PIXELS, labels=LABELS)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npz:{file}")


def test_unusable_saved_data_sets_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_data(f"hf-disk:{tmp_path}")
    spec = write_saved(tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    for features, sentence in (
        ({"label": info["features"]["label"]}, "exactly one column must contain images"),
        ({"image": {"_type": "Image"}, "coarse": {"_type": "Value"}}, "rename it to `label`"),
    ):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}))
        with pytest.raises(DataError, match=sentence):
            load_data(spec)
    with pytest.raises(DataError, match="must contain an integer for every image"):
        load_data(write_saved(tmp_path, label=[0, 1, None, 0, 1, 2]))
    with pytest.raises(DataError, match=r"image 0 of .* is not stored in the data set"):
        load_data(write_saved(tmp_path, image=[{"bytes": None, "path": "/etc/passwd"}] * 6))
    rows = [{"bytes": encoded(PIXELS[0]) if i != 3 else b"?", "path": None} for i in range(6)]
    with pytest.raises(DataError, match="cannot read the image image 3 of"):
        load_data(write_saved(tmp_path, image=rows))
    write_saved(tmp_path)
    (tmp_path / "data-00001-of-00002.arrow").write_bytes(b"cut off")
    with pytest.raises(DataError, match="cannot read the data set in"):
        load_data(spec)


def test_a_damaged_file_anywhere_in_a_folder_is_detected_before_anything_runs(tmp_path: Path) -> None:
    spec = write_folder(tmp_path)
    file = tmp_path / "images" / "2" / "5.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot read the image .*5\.png .*repair or remove it"):
        load_data(spec)


def test_no_image_beyond_a_limit_is_read(tmp_path: Path) -> None:
    spec = write_folder(tmp_path)
    (tmp_path / "images" / "2" / "5.png").write_bytes(b"no image")
    assert len(load_data(spec, limit=4)) == 4


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(1, 40), side=st.integers(1, 3000))
def test_chunks_cover_every_image_once_in_order(samples: int, side: int) -> None:
    found = list(chunks((samples, 1, side, side)))
    assert torch.cat(found).tolist() == list(range(samples))
    assert all(len(chunk) == 1 or len(chunk) * side * side <= 2**22 for chunk in found)


def test_a_subset_of_a_subset_has_the_right_images() -> None:
    whole = ArrayPixels(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1))
    found = ChosenPixels(ChosenPixels(whole, torch.tensor([9, 7, 5, 3])), torch.tensor([3, 0]))
    assert found.shape == (2, 1, 1, 1)
    assert (found[torch.tensor([1, 0])].flatten() * 255).round().tolist() == [9, 3]


@settings(deadline=None, max_examples=30)
@given(keys=st.lists(st.integers(), max_size=8), depth=st.integers(1, 4))
def test_reading_ahead_changes_neither_order_nor_content(keys: list[int], depth: int) -> None:
    assert list(read_ahead(lambda key: key * 2, keys, depth=depth)) == [(key, key * 2) for key in keys]


def test_reading_ahead_reads_only_the_next_batch() -> None:
    seen: list[int] = []
    batches = read_ahead(lambda key: seen.append(key) or key, range(9))
    assert next(batches)[0] == 0
    batches.close()  # waits for pending reads
    assert seen in ([0], [0, 1])


def test_an_error_while_reading_ahead_is_raised_at_its_own_batch() -> None:
    def read(key: int) -> int:
        if key == 1:
            raise DataError("image 1 cannot be read")
        return key

    batches = read_ahead(read, range(3))
    assert next(batches) == (0, 0)
    with pytest.raises(DataError, match="image 1"):
        next(batches)


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of an .npy file that claims this shape of uint8."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**6, 100, 100, 1), (10**9, 10**4, 10**4, 3)])
def test_an_archive_that_claims_more_than_the_memory_is_refused_before_allocation(
    compression: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("images.npy", header(shape) + bytes(64))
        archive.writestr("labels.npy", header((1,)) + bytes(1))
    reason = "mmap length is greater" if compression == zipfile.ZIP_STORED else f"would unpack to {math.prod(shape)}"
    with pytest.raises(DataError, match=reason) as refusal:
        load_data(f"npz:{tmp_path / 'a.npz'}")
    assert str(refusal.value).count("cannot read") == 1


def test_an_archive_whose_directory_claims_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header((1, 2, 2, 1)) + bytes(4))
        archive.writestr("labels.npy", header((1,)) + bytes(1))
        archive.getinfo("images.npy").file_size = 2**33 + 1
    with pytest.raises(DataError, match=f"would unpack to {2**33 + 1} bytes"):
        load_data(f"npz:{tmp_path / 'a.npz'}")
