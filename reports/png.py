"""Small images as PNG data URIs, without an image library."""

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

LARGEST_SIDE = 64


def png_data_uri(image: npt.NDArray[np.float64]) -> str:
    """An image (C, H, W) with values in [0, 1] as `data:image/png;base64,...`.

    Three channels are colours; any other number is averaged to grey. Sides above 64 are reduced by block means.
    """
    pixels = _reduced(image)
    if pixels.shape[0] != 3:
        pixels = pixels.mean(axis=0, keepdims=True)
    levels = np.rint(np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255).astype(np.uint8)
    channels, height, width = levels.shape
    lines = levels.transpose(1, 2, 0).reshape(height, width * channels)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw, 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _reduced(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    channels, height, width = image.shape
    step = -(-max(height, width) // LARGEST_SIDE)
    rows, columns = height // step * step, width // step * step
    blocks = image[:, :rows, :columns].reshape(channels, rows // step, step, columns // step, step)
    reduced: npt.NDArray[np.float64] = blocks.mean(axis=(2, 4))
    return reduced
