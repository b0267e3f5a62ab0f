"""The small PNG files of the gallery, read back by another library."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from robustres.reports.png import png_data_uri


def read(uri: str) -> np.ndarray:
    kind, content = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 5, 9)])
def test_pixels_come_back_as_they_were(shape: tuple[int, int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape)
    image = read(png_data_uri(levels / 255))
    wanted = levels.transpose(1, 2, 0)
    assert np.array_equal(image.reshape(wanted.shape), wanted)


def test_large_images_are_reduced_by_block_means() -> None:
    image = np.zeros((3, 224, 224))
    image[:, :112] = 1.0
    shown = read(png_data_uri(image))
    assert shown.shape == (56, 56, 3)
    assert shown[0, 0, 0] == 255
    assert shown[-1, 0, 0] == 0


def test_values_outside_the_range_and_nan_do_not_wrap_around() -> None:
    assert read(png_data_uri(np.array([[[-1.0, 2.0, np.nan]]]))).tolist() == [[0, 255, 0]]


def test_other_numbers_of_channels_are_shown_in_grey() -> None:
    assert read(png_data_uri(np.stack([np.zeros((2, 2)), np.ones((2, 2))]))).shape == (2, 2)
