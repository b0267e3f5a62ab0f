"""Load an ONNX file as a PyTorch module that has been compared with onnxruntime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.sources.onnx.file import OnnxFile, open_file

ADVICE = "if the file is intact, export the network again or load the original through a factory"


class ImageByImage(nn.Module):
    """A network of fixed batch size, run on batches of that size.

    Used if the batch size could not be distinguished from the other sizes in the file.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.note = f"exported for batches of {size}, run {size} at a time"
        self.no_certificate = (
            f"an ONNX network of batches of {size}, whose batch cannot be distinguished from its other sizes "
            "(export it with a dynamic batch axis)"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), for any number N of images."""
        missing = -len(images) % self.size
        whole = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        answers = [self.network(part) for part in torch.split(whole, self.size)]
        return torch.cat(answers)[: len(images)]


def load_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> nn.Module:
    """The network in an ONNX file, in evaluation mode, compared with onnxruntime on random images.

    input_shape: (C, H, W) of the images, needed if the file leaves them open. A file with a fixed batch size is
    converted to any batch size if the results are the same; otherwise it runs in batches of that size. `note_of`
    reports which. Raises MissingExtraError without the extra `onnx`; ModelError if the file is damaged, refers to files
    outside its folder or has an unsupported operator, or if the converted network gives other logits.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("loading an ONNX model", "onnx") from error
    if not path.is_file():
        raise ModelError(f"there is no ONNX file {path}; check the path")
    try:
        file = open_file(path)
        return _network(file, _image_shape(file, input_shape))
    except ModelError as error:
        raise ModelError(f"cannot read {path} as an ONNX network: {error}; {ADVICE}") from error


def note_of(module: nn.Module) -> str:
    """A remark on a network loaded from a file with a fixed batch size; empty for all others."""
    said = getattr(module, "note", None) or getattr(module, "meta", {}).get("note", "")
    return said if isinstance(said, str) else ""


def _network(file: OnnxFile, shape: tuple[int, ...]) -> nn.Module:
    from robustres.models.sources.onnx.compare import require_same, session_of
    from robustres.models.sources.onnx.graph import convert

    session = None
    try:
        conversion = convert(file, shape)
        session = session_of(file, shape)
        require_same(conversion.module, session, file, shape, conversion.work)
    except ModelError:
        if file.fixed_batch is None:
            raise
    else:
        if conversion.rewritten:
            conversion.module.meta["note"] = f"exported for batches of {file.fixed_batch}, rewritten for any size"
        return conversion.module
    conversion = convert(file, shape, any_batch=False)
    session = session or session_of(file, shape)
    module = ImageByImage(conversion.module, file.fixed_batch).eval()
    require_same(module, session, file, shape, conversion.work)
    return module


def _image_shape(file: OnnxFile, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """(C, H, W), from the file if it states them."""
    sides = file.sides[1:]
    if given is not None and len(given) == len(sides):
        sides = tuple(own if own is not None else side for own, side in zip(sides, given, strict=True))
    if any(side is None or side < 1 for side in sides):
        said = ", ".join("?" if side is None else str(side) for side in file.sides)
        raise ModelError(f"it takes inputs of shape ({said}); give input_shape, (C, H, W) of the images")
    return sides  # type: ignore[return-value]
