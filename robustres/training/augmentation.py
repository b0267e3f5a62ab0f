"""Random label-preserving changes of training images; every draw comes from the given generator."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustres.training.recipe import Recipe

# What a jitter of 1 may do at most.
TURN, STRETCH, SHEAR = math.radians(15), 0.1, 0.2


def augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) moved by up to `recipe.shift` pixels each way (zeros come in), and perhaps mirrored.

    With "jitter" they go through a random affine map near the identity instead.
    """
    if recipe.augmentation == "none":
        return images
    if recipe.augmentation == "jitter":
        return _jittered(images, recipe.jitter, generator)
    samples, _, height, width = images.shape
    if recipe.shift:
        reach = recipe.shift
        moves = torch.randint(0, 2 * reach + 1, (2, samples), generator=generator).to(images.device)
        padded = functional.pad(images, (reach,) * 4)
        if images.is_cuda:
            images = _gathered(padded, moves, height, width)
        else:  # whole rows are copied, which is several times faster than gathering pixels
            corners = zip(padded, *moves.tolist(), strict=True)
            images = torch.stack([image[:, top : top + height, left : left + width] for image, top, left in corners])
    if recipe.augmentation == "shift-flip":
        mirrored = torch.rand(samples, generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def _jittered(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turned, stretched, sheared and moved images, interpolated linearly, zeros outside."""
    samples, _, height, width = images.shape
    draws = strength * (2 * torch.rand(5, samples, generator=generator) - 1).to(images)
    turn, stretch, shear = TURN * draws[0], 1 + STRETCH * draws[1], SHEAR * draws[2]
    rows = (
        torch.stack([stretch * turn.cos(), shear - turn.sin(), 2 / width * draws[3]], dim=1),
        torch.stack([turn.sin(), stretch * turn.cos(), 2 / height * draws[4]], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _gathered(padded: Tensor, moves: Tensor, height: int, width: int) -> Tensor:
    """Each image's window at its corner (rows, columns), in one kernel."""
    rows = (torch.arange(height, device=padded.device) + moves[0][:, None])[:, None, :, None]
    columns = (torch.arange(width, device=padded.device) + moves[1][:, None])[:, None, None, :]
    sample = torch.arange(len(padded), device=padded.device)[:, None, None, None]
    channel = torch.arange(padded.shape[1], device=padded.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]
