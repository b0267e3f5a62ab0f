"""Images of every file type: decoded to their true values, or refused by name."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustres.data import load_data
from robustres.errors import DataError

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (4, 6)).astype(np.uint8)
DEEP = GENERATOR.integers(0, 65536, (4, 6)).astype(np.uint16)
COLOUR = GENERATOR.integers(0, 256, (4, 6, 3)).astype(np.uint8)
FLOATS = GENERATOR.random((4, 6)).astype(np.float32)


def folder_with(tmp_path: Path, image: Image.Image, ending: str, **settings: Any) -> str:
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / f"0.{ending}", **settings)
    return f"folder:{tmp_path}"


def png(width: int, height: int, *, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG written by hand."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("image", "ending", "expected"),
    [
        (Image.fromarray(DEEP), "png", DEEP / 65535),
        (Image.fromarray(DEEP), "tif", DEEP / 65535),
        (Image.fromarray(DEEP), "pgm", DEEP / 65535),
        (Image.fromarray(FLOATS), "tif", FLOATS),
        (Image.fromarray(GREY > 100), "png", (GREY > 100) * 1.0),
        (Image.fromarray(GREY).convert("LA"), "png", GREY / 255),
        (Image.fromarray(COLOUR).convert("RGBA"), "png", COLOUR / 255),
        (
            Image.fromarray(COLOUR).quantize(256),
            "png",
            np.asarray(Image.fromarray(COLOUR).quantize(256).convert("RGB")) / 255,
        ),
    ],
    ids=["16 bits", "16-bit TIFF", "16-bit PGM", "float", "1 bit", "opaque grey", "opaque colour", "palette"],
)
def test_an_image_is_decoded_to_its_true_values(
    image: Image.Image, ending: str, expected: np.ndarray, tmp_path: Path
) -> None:
    found = load_data(folder_with(tmp_path, image, ending)).images[0]
    wanted = torch.from_numpy(np.asarray(expected, dtype=np.float32))
    assert torch.allclose(found, wanted[None] if wanted.ndim == 2 else wanted.permute(2, 0, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("image", "ending", "settings", "sentence"),
    [
        (Image.fromarray(DEEP.astype(np.int32)), "tif", {}, "32-bit integers"),
        (Image.fromarray(FLOATS * 255), "tif", {}, "look like 8-bit values"),
        (Image.merge("LA", [Image.fromarray(GREY)] * 2), "png", {}, "partly transparent"),
        (Image.fromarray(COLOUR).quantize(8), "png", {"transparency": 3}, "partly transparent"),
        (Image.fromarray(COLOUR).convert("CMYK"), "jpg", {}, "CMYK .* ink profile"),
        (Image.fromarray(COLOUR).convert("LAB"), "tif", {}, "is in LAB"),
        (
            Image.fromarray(COLOUR),
            "png",
            {"save_all": True, "append_images": [Image.fromarray(255 - COLOUR)]},
            "has 2 frames",
        ),
    ],
)
def test_pixel_formats_without_known_values_are_refused_by_name(
    image: Image.Image, ending: str, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(folder_with(tmp_path, image, ending, **settings))


def test_an_image_is_rotated_according_to_its_exif_orientation(tmp_path: Path) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    found = load_data(folder_with(tmp_path, Image.fromarray(GREY), "png", exif=orientation)).images[0, 0]
    assert torch.equal((found * 255).round(), torch.from_numpy(np.rot90(GREY, -1).copy()).float())


def test_16_bit_colour_and_enormous_images_are_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    deep = b"".join(b"\0" + GENERATOR.integers(0, 65536, (3, 3)).astype(">u2").tobytes() for _ in range(3))
    (tmp_path / "cat" / "0.png").write_bytes(png(3, 3, bits=16, kind=2, rows=deep))
    with pytest.raises(DataError, match="16-bit colours"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "cat" / "0.png").write_bytes(png(9000, 9000, bits=8, kind=0, rows=b"0"))
    with pytest.raises(DataError, match="9000 x 9000 pixels"):
        load_data(f"folder:{tmp_path}")


def test_labels_are_bounded_before_class_names_are_created(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 4, 4, 1), np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 2**32 - 1], dtype=np.uint32))
    with pytest.raises(DataError, match="sample 1 has label 4294967295; labels number the classes from 0"):
        load_data(f"npy:{tmp_path}")
    with pytest.raises(DataError, match="label 1099511627776"):
        load_data((torch.zeros(1, 1, 2, 2), torch.tensor([2**40])))


def test_a_file_of_classes_orders_the_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(GREY).save(tmp_path / name / "0.png")
    order = tmp_path / "order.txt"
    order.write_text("dog\nbird\ncat\n")
    found = load_data(f"folder:{tmp_path}", classes=order)
    assert found.class_names == ("dog", "bird", "cat")
    assert sorted(found.labels.tolist()) == [0, 2]
    assert load_data(f"folder:{tmp_path}").ordered_by_name > found.ordered_by_name
    order.write_text("dog\n")
    with pytest.raises(DataError, match="does not name the folder cat"):
        load_data(f"folder:{tmp_path}", classes=order)
    order.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="in UTF-8"):
        load_data(f"folder:{tmp_path}", classes=order)
    with pytest.raises(DataError, match="only folder:DIR takes a file of classes"):
        load_data("digits", classes=order)
