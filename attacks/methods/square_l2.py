"""Starts and proposals of the Square attack in l2: norm moves between windows while the total norm stays eps.

Andriushchenko et al. 2020, algorithm 3 and section 3.3: a proposal takes the norm of one window, adds the unused part
of eps, and assigns it to another window in the shape of two pyramids of opposite sign.
"""

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.randomness import integers
from robustres.attacks.geometry.window import window_index


def pyramid(height: int, width: int) -> Tensor:
    """A pseudo-Gaussian pyramid: sums of 1 / (k + 1)^2 over concentric rectangles, of unit norm."""
    shape = torch.zeros(height, width)
    centre = (height // 2 + 1, width // 2 + 1)
    top, left = centre[0] - 1, centre[1] - 1
    for ring in range(max(centre)):
        shape[max(top, 0) : top + 2 * ring + 1, max(left, 0) : left + 2 * ring + 1] += 1.0 / (ring + 1) ** 2
        top, left = top - 1, left - 1
    return shape / float(torch.linalg.vector_norm(shape))


def double_pyramid(side: int) -> Tensor:
    """Two pyramids of opposite sign, side by side in a square, of unit norm."""
    shape = torch.zeros(side, side)
    half = side // 2
    shape[:half] = pyramid(half, side) if half else 0
    shape[half:] = -pyramid(side - half, side)
    return shape / float(torch.linalg.vector_norm(shape))


def start_l2(keys: Tensor, x: Tensor, eps: float) -> Tensor:
    """The image plus a chessboard of pyramids with random signs, scaled to norm eps and clipped."""
    _, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    shape = double_pyramid(side).to(x) if side > 1 else torch.ones(1, 1).to(x)
    signs = (integers(keys, 2, (channels, rows, columns)) * 2 - 1).to(x.dtype)
    tiles = signs[:, :, :, None, :, None] * shape[None, None, None, :, None, :]
    board = torch.zeros_like(x)
    board[:, :, : rows * side, : columns * side] = tiles.reshape(len(x), channels, rows * side, columns * side)
    return _scaled(x, board, eps)


def propose_l2(points: Tensor, x: Tensor, corners: Tensor, signs: Tensor, side: int, problem: Problem) -> Tensor:
    """New points (B, C, H, W): the norm of the second window, and the unused part of eps, moves into the first one.

    corners: (B, 4) rows and columns of the two windows; signs: (B, C) of the new pattern.
    """
    eps, channels = problem.threat.eps, x.shape[1]
    delta = points - x
    everyone = torch.arange(len(x), device=x.device)
    first = window_index(everyone, corners[:, 0], corners[:, 1], channels, side)
    second = window_index(everyone, corners[:, 2], corners[:, 3], channels, side)
    inside = torch.zeros_like(delta, dtype=torch.bool)
    inside[first] = True
    inside[second] = True
    norm_of_image = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    norm_of_windows = torch.linalg.vector_norm((delta * inside).flatten(2), dim=2)
    spare = (eps**2 - norm_of_image**2).clamp(min=0)[:, None] / channels
    old = delta[first]
    old = old / (1e-12 + torch.linalg.vector_norm(old.flatten(2), dim=2)[:, :, None, None])
    new = double_pyramid(side).to(x)[None, None] * signs[:, :, None, None].to(x.dtype) + old
    length = torch.linalg.vector_norm(new.flatten(2), dim=2).clamp(min=1e-12)
    new = new / length[:, :, None, None] * torch.sqrt(spare + norm_of_windows**2)[:, :, None, None]
    delta[second] = 0.0
    delta[first] = new
    return _scaled(x, delta, eps)


def _scaled(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp(min=1e-12)
    moved: Tensor = (x + delta * per_sample(eps / length, x)).clamp(0, 1)
    return moved
