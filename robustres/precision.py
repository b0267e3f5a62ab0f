"""In which floating type a model takes its images, whatever type they are stored in."""

import torch
from torch import Tensor, nn

# Types whose unit roundoff is so large that no radius covers what a network computes in them.
REDUCED = (torch.float16, torch.bfloat16)


class Taking(nn.Module):
    """A model with its images cast to the type that it takes; the model itself is not changed."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, C, H, W) of any floating type."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits


def taking(model: nn.Module, images: Tensor) -> nn.Module:
    """The model as a function of images of this type: itself where it takes them as they are."""
    dtype = image_dtype(model, images)
    return model if dtype == images.dtype else Taking(model, dtype)


def image_dtype(model: nn.Module, images: Tensor) -> torch.dtype:
    """The type in which the model takes images (N, C, H, W).

    It is the images' own where the model runs on that, else the first of the types of its weights on which it runs.
    The first image is passed through where the weights have other types than the images. Where the model runs on none
    of them, the images' own type is returned, with which the model gives its own error.
    """
    own = floating_types(model)
    if set(own) <= {images.dtype} or not len(images):
        return images.dtype
    for dtype in (images.dtype, *own):
        try:
            with torch.no_grad():
                model(images[:1].detach().to(dtype, copy=True))
        except Exception:  # a module may refuse a type by any error; what it says is heard when it is run in earnest
            continue
        return dtype
    return images.dtype


def floating_types(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The floating types of the parameters and buffers, in their order."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point()))


def named(dtype: torch.dtype) -> str:
    """A type as people write it: float32."""
    return str(dtype).removeprefix("torch.")
