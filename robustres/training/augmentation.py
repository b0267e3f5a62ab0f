"""Random changes of training images that keep their labels; every draw comes from the generator given."""

import torch
from torch import Tensor
from torch.nn import functional

from robustres.training.recipe import Recipe


def augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) moved by up to `recipe.shift` pixels each way (zeros come in), and perhaps mirrored."""
    if recipe.augmentation == "none":
        return images
    samples, _, height, width = images.shape
    if recipe.shift:
        reach = recipe.shift
        moves = torch.randint(0, 2 * reach + 1, (2, samples), generator=generator).to(images.device)
        padded = functional.pad(images, (reach,) * 4)
        if images.is_cuda:
            images = _gathered(padded, moves, height, width)
        else:  # whole rows are copied, which is several times faster than to gather pixels
            corners = zip(padded, *moves.tolist(), strict=True)
            images = torch.stack([image[:, top : top + height, left : left + width] for image, top, left in corners])
    if recipe.augmentation == "shift-flip":
        mirrored = torch.rand(samples, generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def _gathered(padded: Tensor, moves: Tensor, height: int, width: int) -> Tensor:
    """Each image's window at its corner (rows, columns), in one kernel."""
    rows = (torch.arange(height, device=padded.device) + moves[0][:, None])[:, None, :, None]
    columns = (torch.arange(width, device=padded.device) + moves[1][:, None])[:, None, None, :]
    sample = torch.arange(len(padded), device=padded.device)[:, None, None, None]
    channel = torch.arange(padded.shape[1], device=padded.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]
