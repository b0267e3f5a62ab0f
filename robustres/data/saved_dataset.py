"""A Hugging Face data set written by `save_to_disk`: Arrow files with encoded images, read in place."""

import io
import json
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from robustres.data.check import numbered_classes
from robustres.data.decode import decoded, header
from robustres.data.image_set import ImageSet
from robustres.data.pixels import ChosenPixels, DecodedPixels, Pixels
from robustres.data.splits import SPLIT_SEED, Split, held_out, split_folder
from robustres.errors import DataError


def saved_dataset(folder: Path, split: Split = "test", *, limit: int | None = None) -> ImageSet:
    """The split of a saved DatasetDict, or a saved Dataset as its test split.

    Needs one column of images (feature `Image`, stored in the files) and one of labels: the column called `label` or
    `labels`, or else the only one with the feature `ClassLabel`. The files are mapped into memory and each image is
    decoded when its batch is read. No code of the data set is executed, and the library `datasets` is not needed.
    """
    part, carve = split_folder(folder, split)
    source = f"hf-disk:{folder} ({split})"
    table, features = _open(part)
    image = _image_column(features, source)
    label = _label_column(features, source)
    encoded = _cell_reader(table.column(image), source)
    labels = _labels(table.column(label), source, label)
    shape = header(io.BytesIO(encoded(0)), f"image 0 of {source}")

    def decode(index: int) -> Tensor:
        name = f"image {index} of {source}"
        return decoded(io.BytesIO(encoded(index)), name, shape=shape, first=f"image 0 of {source}")

    pixels: Pixels = DecodedPixels(len(labels), shape, decode)
    chosen = held_out(labels, split) if carve else torch.arange(len(labels))
    if carve or limit is not None:
        pixels = ChosenPixels(pixels, chosen[:limit])
    names = features[label].get("names") or numbered_classes(labels, source)
    seed = SPLIT_SEED if carve else None
    return ImageSet(pixels, labels[chosen[:limit]], tuple(names), source, split=split, split_seed=seed)


def _cell_reader(column: Any, source: str) -> Callable[[int], bytes]:
    """The encoded image in each row of a column stored in several chunks."""
    ends = list(accumulate(len(chunk) for chunk in column.chunks))

    def read(index: int) -> bytes:
        chunk = bisect_right(ends, index)
        cell = column.chunk(chunk)[index - (ends[chunk - 1] if chunk else 0)].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise DataError(
                f"image {index} of {source} is not stored in the data set but named by a path; save it again with "
                "embedded images (save_to_disk of a data set whose column is cast to datasets.Image())"
            )
        return content

    return read


def _open(part: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    """All rows, memory-mapped and not read, and the features that the data set declares."""
    state = part / "state.json"
    if not state.is_file():
        raise DataError(f"there is no file {state}; hf-disk:DIR needs a data set written by save_to_disk")
    try:
        files = [part / Path(entry["filename"]).name for entry in json.loads(state.read_text())["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
        table = pa.concat_tables(tables)
        table.validate(full=True)  # otherwise damaged offsets would point outside the file
        features = json.loads((part / "dataset_info.json").read_text())["features"]
    except Exception as error:  # the files may contain anything
        raise DataError(
            f"cannot read the data set in {part} ({_line(error)}); save it again with save_to_disk"
        ) from error
    if not len(table):
        raise DataError(f"{part}: there are no images; at least one is needed")
    return table, {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _image_column(features: dict[str, dict[str, Any]], source: str) -> str:
    found = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    if len(found) != 1:
        raise DataError(
            f"{source}: exactly one column must contain images (feature Image), found {found or 'none'} among "
            f"{sorted(features)}; cast or remove columns"
        )
    return found[0]


def _label_column(features: dict[str, dict[str, Any]], source: str) -> str:
    for name in ("label", "labels"):
        if name in features:
            return name
    found = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if len(found) != 1:
        raise DataError(
            f"{source}: it is not clear which of {found or sorted(features)} contains the labels; rename it to `label`"
        )
    return found[0]


def _labels(column: Any, source: str, name: str) -> Tensor:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"{source}: the column {name} must contain an integer for every image, got {column.type} with "
            f"{column.null_count} missing; cast it to datasets.ClassLabel"
        )
    return torch.tensor(column.to_pylist(), dtype=torch.int64)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
