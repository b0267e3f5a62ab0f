"""One entry for every source of models."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.networks.materialise import materialise
from robustres.models.networks.normalised import normalised
from robustres.models.sources.checkpoint import load_checkpoint
from robustres.models.sources.exported_program import load_exported
from robustres.models.sources.factory import call_factory
from robustres.models.sources.onnx.load import load_onnx, note_of
from robustres.models.sources.torchscript import is_torchscript, load_torchscript
from robustres.models.sources.transformers_classifier import logits_only
from robustres.models.sources.weights_file import load_weights
from robustres.models.sources.zoo import ZOOS
from robustres.precision import image_dtype, taking

TORCH_FILES = frozenset({".pt", ".pth", ".bin", ".ts", ".torchscript"})


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be attacked and certified.

    module: in evaluation mode, normalisation included. source: the specification with which it was loaded.
    sha256: digest of all weights and buffers by name. parameters: number of trainable numbers. note: remarks on how it
        was read, such as the batch size for which an ONNX file was exported.
    """

    module: nn.Module
    source: str
    sha256: str
    parameters: int
    note: str = ""

    def __repr__(self) -> str:
        return f"LoadedModel({self.source}, {self.parameters:,} parameters, sha256 {self.sha256[:12]})"


def load_model(
    spec: str | os.PathLike[str] | nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: tuple[int, ...] | None = None,
    download: bool = False,
) -> LoadedModel:
    """A classifier of images in [0, 1], from a file, by the name of a published network, from a factory, or a given
    module.

    spec: a checkpoint `FILE.safetensors` (with FILE.json), `FILE.onnx`, `FILE.pt2` (torch.export), TorchScript as
        `FILE.pt` or .pth, an nn.Module, or a network by name: `torchvision:NAME`, `timm:NAME`, `hf:ORG/NAME` or
        `hf:FOLDER`, `robustbench:DATASET/THREAT/NAME`, `package.module:factory` or
        `package.module:factory(width=32, pretrained=False)` (imported and called). Each may be followed by `@FILE`, a
        state_dict as .pt, .pth or .safetensors, which replaces the weights.
        Only a factory executes code that is not part of an installed library; opening a file never does.
    download: whether published weights may be downloaded if they are not on this machine.
    mean, std: the normalisation that the network expects, per channel and in units of pixels in [0, 1]; it becomes part
        of the network. With a std alone the images are only divided; a mean alone is refused. Published weights bring
        their own normalisation, which the note states.
    input_shape: (C, H, W) of the images; if given, one image is passed through as a check.
    Raises ModelError, in one sentence, if the model cannot be used.
    """
    module, source = (
        (logits_only(spec), type(spec).__name__)
        if isinstance(spec, nn.Module)
        else (_read(os.fspath(spec), download, input_shape), os.fspath(spec))
    )
    note = note_of(module)
    module = materialise(module)
    dtype = torch.float32 if input_shape is None else image_dtype(module, _one_image(module, input_shape))
    module = normalised(module, mean, std, dtype=dtype)
    module.eval()
    if input_shape is not None:
        _pass_one_image(module, input_shape, source)
    return LoadedModel(module, source, weights_digest(module), sum(p.numel() for p in module.parameters()), note)


def weights_digest(module: nn.Module) -> str:
    """sha256 over name, type, shape and content of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):  # what a quantised layer stores besides its weights
            digest.update(f"{name} {tensor!r}".encode())
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_plain(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    """The numbers that a tensor represents, as an ordinary tensor."""
    return tensor.dequantize() if tensor.is_quantized else tensor.detach()


def _read(spec: str, download: bool, input_shape: tuple[int, ...] | None) -> nn.Module:
    """The model of a spec; the part after an @ is a file of weights for it."""
    source, at, weights = spec.partition("@")
    file = Path(weights) if at else None
    readers: dict[str, Callable[[Path], nn.Module]] = {
        ".safetensors": load_checkpoint, ".onnx": lambda path: load_onnx(path, input_shape), ".pt2": load_exported,
        **dict.fromkeys(TORCH_FILES, lambda path: _torch_file(path, input_shape)),
    }  # fmt: skip
    reader = readers.get(Path(source).suffix)
    if reader is not None:
        module = reader(Path(source))
        if file is not None:
            load_weights(module, file)
        return module
    kind, colon, name = source.partition(":")
    if not (colon and kind and name):
        raise ModelError(
            "a model must be FILE.safetensors, FILE.onnx, FILE.pt2, FILE.pt (TorchScript), torchvision:NAME, "
            "timm:NAME, hf:ORG/NAME, robustbench:DATASET/THREAT/NAME or package.module:factory, each also with "
            f"@WEIGHTS, got {spec!r}"
        )
    if kind in ZOOS:
        return ZOOS[kind](name, file, download)
    module = call_factory(kind, name)
    if file is not None:
        load_weights(module, file)
    return module


def _torch_file(file: Path, input_shape: tuple[int, ...] | None) -> nn.Module:
    """A TorchScript file; raises ModelError for other files with the same extensions."""
    if not file.is_file():
        raise ModelError(f"there is no file {file}; check the path")
    if is_torchscript(file):
        return load_torchscript(file, input_shape)
    raise ModelError(
        f"{file} is not TorchScript; it may contain weights, but not the network (a pickled module would execute "
        f"code): name the network as well, package.module:factory@{file}"
    )


def _one_image(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A random image (1, *input_shape), float32, on the device of the module's tensors."""
    place = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    return torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(place)


def _pass_one_image(module: nn.Module, input_shape: tuple[int, ...], source: str) -> None:
    try:
        with torch.no_grad():
            image = _one_image(module, input_shape)
            logits = taking(module, image)(image)
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source} cannot process images of shape {tuple(input_shape)}: {reason}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{source} must return logits of shape (N, classes) with at least 2 classes, got {got}")
