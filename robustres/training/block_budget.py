"""Brings residual blocks of any origin below a budget: the blocks are found in the certifier's graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from robustres.certify import ResidualView, residual_views, spectral_norm
from robustres.errors import InputError, ModelError
from robustres.models.constraints.operator_norm import STORAGE_SLACK

JOINT_EFFORT = 0.2  # of each evaluation of the joint bound, see robustres.certify.blocks.joint_bound
Affine = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block S x + F(x) of a network, and the layers that shrink S and F.

    projection: None if S is the identity, or cannot be shrunk.
    """

    view: ResidualView
    outer: Affine
    projection: Affine | None

    @property
    def path(self) -> str:
        """Dotted name of the module that holds it."""
        return self.view.path

    def bound(self, share: float, *, joint: bool) -> float:
        """At or above the Lipschitz constant of S x + share F(x)."""
        return self.view.bound(share, joint=joint, effort=JOINT_EFFORT)


def residual_blocks(network: nn.Module, input_shape: tuple[int, ...]) -> list[Block]:
    """The residual blocks of a network of linear maps, activations and sums.

    Raises UnsupportedOperationError for operations that the certifier does not support, ModelError for a block whose
    branch does not alternate linear maps and activations, or does not end in its own layer.
    """
    return [_block(network, view) for view in residual_views(network, input_shape)]


def shrink_blocks(
    network: nn.Module, input_shape: tuple[int, ...], budget: float, *, method: Literal["scale", "joint"]
) -> None:
    """Shrink, in place, the branch of every residual block until its bound is at most `budget`.

    If a projection alone exceeds the budget, it is shrunk together with its branch by the same factor.
    Raises InputError if a shortcut is the identity and the budget leaves no room for a branch.
    """
    blocks = residual_blocks(network, input_shape)
    if not blocks:
        raise ModelError("there is no residual block here; use the method 'spectral' or 'clip'")
    for block in blocks:
        _shrink(block, budget, joint=method == "joint")


def require_blocks_below(
    network: nn.Module, input_shape: tuple[int, ...], budget: float, *, method: Literal["scale", "joint"]
) -> None:
    """Raise ModelError if a block of the network, as it is stored, is not proved to be below the budget."""
    for block in residual_blocks(network, input_shape):
        if (bound := block.bound(1.0, joint=method == "joint")) > budget:
            raise ModelError(
                f"the residual block {block.path} has a bound of {bound:.6g}, above the budget {budget:g}: its layers "
                "do not scale it; use the method 'spectral'"
            )


def _shrink(block: Block, budget: float, *, joint: bool) -> None:
    floor = spectral_norm(block.view.shortcut).upper
    if floor < budget:
        _multiply(block.outer, _largest_share(lambda share: block.bound(share, joint=joint), floor, budget))
    elif block.projection is None:
        raise InputError(
            f"a shortcut alone has norm {floor:.4g}, so no branch of {block.path} fits the budget {budget:g}; raise it"
        )
    elif (whole := block.bound(1.0, joint=joint)) > budget:
        factor = budget / (whole * (1 + STORAGE_SLACK))
        _multiply(block.projection, factor)
        _multiply(block.outer, factor)


def _largest_share(bound: Callable[[float], float], floor: float, budget: float, *, steps: int = 4) -> float:
    """A factor in (0, 1] on the branch for which the computed bound is below the budget; 1 if the branch fits.

    By the method of false position: the constant is a convex function of the factor, so the chord lies above it and
    each guess is nearly admissible. Every factor that is returned was tested, or is 0.
    """
    limit = budget / (1 + STORAGE_SLACK)
    low, low_bound, high, high_bound = 0.0, floor, 1.0, bound(1.0)
    if high_bound <= budget:
        return 1.0
    for _ in range(steps):
        guess = low + (high - low) * (limit - low_bound) / (high_bound - low_bound)
        found = bound(guess * (1 - 1e-9))
        if found > limit:
            high, high_bound = guess, found
        elif found > limit * (1 - 1e-3):
            return guess * (1 - 1e-9)
        else:
            low, low_bound = guess * (1 - 1e-9), found
    return low


def _block(network: nn.Module, view: ResidualView | str) -> Block:
    outer = None if isinstance(view, str) else _last_layer(network, view.branch_end)
    if isinstance(view, str) or outer is None:
        raise ModelError(
            f"the residual block {view if isinstance(view, str) else view.path} has no single branch of layers and "
            "activations in turn that ends in a layer; use the method 'spectral'"
        )
    return Block(view, outer, _last_layer(network, view.shortcut_end))


def _last_layer(network: nn.Module, paths: tuple[str, ...]) -> Affine | None:
    """The first of these modules that is an affine layer with a weight."""
    modules = dict(network.named_modules())
    for path in paths:
        module = modules.get(path)
        if isinstance(module, Affine) and module.weight is not None:
            return module
    return None


def _multiply(layer: Affine, factor: float) -> None:
    """Multiply weight and bias, and thereby the layer's output."""
    with torch.no_grad():
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)
