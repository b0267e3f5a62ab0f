"""The adversarial examples of a run as one NumPy archive, for users who do not read Parquet."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustres.errors import InputError, StorageError
from robustres.results.folder import RunFolder
from robustres.results.schema import ARCHIVE

COLUMNS = ("index", "attack", "norm", "eps")


def write_archive(folder: RunFolder) -> Path:
    """Write adversarial.npz into the run's folder and return its path; one part of the run is in memory at a time.

    images: (N, C, H, W) float32 in [0, 1], 8-bit images as k / 255; index: (N,) of the samples; attack, norm: (N,)
        strings; eps: (N,), NaN for attacks without one.
    Raises InputError if the run stored no examples, StorageError if the file cannot be written.
    """
    frames = [frame for frame, _ in folder.adversarial()]
    shapes = [images.shape for _, images in folder.adversarial()]
    if not frames:
        raise InputError(f"{folder.path} stored no examples; evaluate with --save-examples")
    file = folder.path / ARCHIVE
    partial = file.with_name(f".{ARCHIVE}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            images = (images for _, images in folder.adversarial())
            _write(archive, "images", images, (sum(shape[0] for shape in shapes), *shapes[0][1:]), np.dtype("<f4"))
            for name in COLUMNS:
                column = np.concatenate([frame[name].to_numpy() for frame in frames])
                column = column.astype(str) if column.dtype == object else column
                _write(archive, name, iter([column]), column.shape, column.dtype)
        partial.replace(file)
    except OSError as error:
        raise StorageError(
            f"cannot write {file} ({error.strerror or error}); make room, then write it again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def _write(
    archive: zipfile.ZipFile,
    name: str,
    parts: Iterator[NDArray[np.generic]],
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> None:
    """Write one array, concatenated from parts along its first axis."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
