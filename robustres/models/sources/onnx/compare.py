"""Comparison of a converted network with onnxruntime on random inputs; every network is compared before it is used."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.sources.onnx.file import OnnxFile, first_line

# Largest allowed difference of logits, relative to the larger of 1 and the largest logit.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-9}
# Batch sizes; all images are different.
BATCHES = (1, 4, 2)


def session_of(file: OnnxFile, shape: Sequence[int]) -> Any:
    """The file as an onnxruntime session: only the nodes needed for the output, with the weights as converted."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(file.plain(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime, which is needed for the comparison, refuses it: {first_line(error)}") from error


def require_same(module: nn.Module, session: Any, file: OnnxFile, shape: tuple[int, ...], work: float) -> None:
    """Raise ModelError unless both give the same logits, for batches of several sizes.

    If the file has a fixed batch size, onnxruntime runs that many images at a time."""
    generator = torch.Generator().manual_seed(0)
    for images in samples(shape, BATCHES if work < 1e11 else BATCHES[:1] + BATCHES[2:], generator):
        batch = images.to(file.dtype)
        expected = torch.from_numpy(reference(session, batch, file.fixed_batch))
        try:
            with torch.no_grad():
                answers = module(batch.clone())
        except Exception as error:
            raise ModelError(f"the converted network does not run: {first_line(error)}") from error
        if answers.shape != expected.shape:
            raise ModelError(
                f"the converted network gives outputs {tuple(answers.shape)}, onnxruntime {tuple(expected.shape)}"
            )
        require_close(answers, expected, file.dtype)


def samples(shape: tuple[int, ...], sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Batches of images: in [0, 1], far outside of it, and black and white images."""
    found = []
    for place, size in enumerate(sizes):
        images = torch.rand(size, *shape, generator=generator)
        if place == 1:
            images[1::3] = 4 * images[1::3] - 2
            images[2::3] = (images[2::3] > 0.5).to(images.dtype)
        found.append(images)
    return found


def reference(session: Any, images: Tensor, fixed: int | None) -> Any:
    """The logits of onnxruntime, computed in batches of the file's batch size."""
    name = session.get_inputs()[0].name
    size = fixed or len(images)
    answers = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part)
        part = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
        try:
            answer = session.run(None, {name: part.numpy()})[0]
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run it: {first_line(error)}") from error
        answers.append(answer[: size - missing])
    return np.concatenate(answers)


def require_close(answers: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raise ModelError if the logits differ by more than rounding."""
    finite = expected[torch.isfinite(expected)].abs()
    scale = 1 + (float(finite.max()) if finite.numel() else 0.0)
    difference = torch.where(answers == expected, 0.0, (answers - expected).abs())
    both = torch.isnan(answers) & torch.isnan(expected)
    deviation = float(torch.where(both, 0.0, difference).max()) if difference.numel() else math.inf
    if not deviation <= TOLERANCE[dtype] * scale:
        raise ModelError(
            f"the converted network deviates from onnxruntime by {deviation:.3g}; please report the file, and load "
            "the original through a factory"
        )
