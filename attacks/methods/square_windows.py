"""Starts and proposals of the Square attack in l2 and l1: norm moves between windows while the total stays within eps.

Andriushchenko et al. 2020, algorithm 3 and section 3.3: a proposal takes the norm of two windows, adds the unused part
of eps, and assigns both to one of the windows in the shape of two pyramids of opposite sign. In l1 (Croce and Hein
2021, "Mind the box") lengths are l1 norms, and the result is projected onto the intersection of ball and box.
"""

import torch
from torch import Tensor

from robustres.attacks.geometry import ball
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.randomness import integers
from robustres.attacks.geometry.window import window_index
from robustres.threat import ThreatModel


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


def start(keys: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The image plus a chessboard of pyramids with random signs, moved into ball and box."""
    _, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    shape = double_pyramid(side).to(x) if side > 1 else torch.ones(1, 1).to(x)
    signs = (integers(keys, 2, (channels, rows, columns)) * 2 - 1).to(x.dtype)
    tiles = signs[:, :, :, None, :, None] * shape[None, None, None, :, None, :]
    board = torch.zeros_like(x)
    board[:, :, : rows * side, : columns * side] = tiles.reshape(len(x), channels, rows * side, columns * side)
    return _into_ball(x, board, threat)


def propose(points: Tensor, x: Tensor, corners: Tensor, signs: Tensor, side: int, threat: ThreatModel) -> Tensor:
    """New points (B, C, H, W): the norm of the second window, and the unused part of eps, moves into the first one.

    corners: (B, 4) rows and columns of the two windows; signs: (B, C) of the new pattern.
    """
    order, channels = (1 if threat.norm == "l1" else 2), x.shape[1]
    delta = points - x
    everyone = torch.arange(len(x), device=x.device)
    first = window_index(everyone, corners[:, 0], corners[:, 1], channels, side)
    second = window_index(everyone, corners[:, 2], corners[:, 3], channels, side)
    inside = torch.zeros_like(delta, dtype=torch.bool)
    inside[first] = True
    inside[second] = True
    powers = delta.abs() if order == 1 else delta.square()
    spare = (threat.eps**order - powers.flatten(1).sum(dim=1)).clamp(min=0)[:, None] / channels
    length = (spare + (powers * inside).flatten(2).sum(dim=2)) ** (1 / order)
    new = double_pyramid(side).to(x)[None, None] * signs[:, :, None, None].to(x.dtype)
    new = _unit(_unit(new, order) + _unit(delta[first], order), order) * length[:, :, None, None]
    delta[second] = 0.0
    delta[first] = new
    return _into_ball(x, delta, threat)


def _unit(windows: Tensor, order: int) -> Tensor:
    """Every channel of every window (B, C, side, side) divided by its norm."""
    length = torch.linalg.vector_norm(windows.flatten(2), ord=order, dim=2)
    divided: Tensor = windows / length.clamp(min=1e-12)[:, :, None, None]
    return divided


def _into_ball(x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    """The image plus delta, scaled to norm eps and clipped to the box; in l1, projected onto both at once."""
    if threat.norm == "l1":
        return x + ball.project_l1_box(delta, x, threat.eps)
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp(min=1e-12)
    moved: Tensor = (x + delta * per_sample(threat.eps / length, x)).clamp(0, 1)
    return moved
