"""The floating-point type in which a model takes images, independent of the type in which they are stored."""

import torch
from torch import Tensor, nn

# Types whose unit roundoff is too large for a radius to cover the rounding errors of a network.
REDUCED = (torch.float16, torch.bfloat16)


class Taking(nn.Module):
    """A model whose images are cast to the type that it takes; the model itself is not changed."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, C, H, W) of any floating-point type."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits


def taking(model: nn.Module, images: Tensor) -> nn.Module:
    """The model as a function of images of this type: the model itself if it accepts them directly."""
    dtype = image_dtype(model, images)
    return model if dtype == images.dtype else Taking(model, dtype)


def image_dtype(model: nn.Module, images: Tensor) -> torch.dtype:
    """The type in which the model takes images (N, C, H, W).

    This is the type of the images if the model runs on it, or else the first type among its weights on which it runs.
    If the weights have other types than the images, the first image is passed through the model. If the model runs on
    none of them, the type of the images is returned, so that the model raises its own error.
    """
    own = floating_types(model)
    if set(own) <= {images.dtype} or not len(images):
        return images.dtype
    for dtype in (images.dtype, *own):
        try:
            with torch.no_grad():
                model(images[:1].detach().to(dtype, copy=True))
        except Exception:  # a module may reject a type with any error, raised again when the model runs
            continue
        return dtype
    return images.dtype


def floating_types(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The floating-point types of the parameters and buffers, in their order."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point()))


def named(dtype: torch.dtype) -> str:
    """The short name of a type: float32."""
    return str(dtype).removeprefix("torch.")
