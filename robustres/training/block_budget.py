"""Residual blocks brought below a budget, wherever they come from: the certifier's graph says where they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from robustres.certify.blocks.joint_bound import branch_bound
from robustres.certify.blocks.parallel_paths import Operand, Region, region
from robustres.certify.blocks.residual_bound import alternating
from robustres.certify.graph.capture import capture
from robustres.certify.graph.network import Linear, Merge, Node, dominators
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.sector import Slopes, largest_slope
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError, ModelError, UnsupportedOperationError
from robustres.models.constraints.operator_norm import STORAGE_SLACK

JOINT_EFFORT = 0.2  # of each evaluation of the joint bound, see robustres.certify.blocks.joint_bound
Affine = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block S x + F(x): its maps in float64, and the layers of the network that shrink S and F.

    projection: None where S is the identity, or nothing that can be shrunk.
    """

    path: str
    shortcut: LinearMap
    layers: tuple[LinearMap, ...]
    slopes: tuple[Slopes, ...]
    outer: Affine
    projection: Affine | None

    def bound(self, share: float, *, joint: bool) -> float:
        """At or above the Lipschitz constant of S x + share F(x)."""
        layers = (*self.layers[:-1], share * self.layers[-1])
        if joint:
            return branch_bound(self.shortcut, layers, slopes=self.slopes, effort=JOINT_EFFORT).upper
        total = spectral_norm(self.shortcut).upper
        branch = share
        for layer in self.layers:
            branch *= spectral_norm(layer).upper
        for slopes in self.slopes:
            branch *= largest_slope(slopes)
        return (total + branch) * (1 + 1e-12)


def residual_blocks(network: nn.Module, input_shape: tuple[int, ...]) -> list[Block]:
    """The residual blocks of a network of linear maps, activations and sums.

    Raises UnsupportedOperationError for operations that the certifier does not know, ModelError for a block whose
    branch is not linear maps and activations in turn, or ends in no layer of its own.
    """
    output, refused = build_network(capture(network, input_shape))
    if output is None:
        raise UnsupportedOperationError(refused)
    order = output.ordered()
    dominator = dominators(order)
    merges = [node for node in order if isinstance(node.piece, Merge)]
    found = [region(dominator, merge) for merge in merges]
    return [_block(network, place) for place in found if place.kind.startswith("residual")]


def shrink_blocks(
    network: nn.Module, input_shape: tuple[int, ...], budget: float, *, method: Literal["scale", "joint"]
) -> None:
    """Shrink, in place, the branch of every residual block until its bound is at most `budget`.

    Where a projection alone exceeds the budget, it is shrunk together with its branch by the same factor.
    Raises InputError where a shortcut is the identity and the budget leaves no room for a branch.
    """
    blocks = residual_blocks(network, input_shape)
    if not blocks:
        raise ModelError("there is no residual block here; use the method 'spectral' or 'clip'")
    for block in blocks:
        _shrink(block, budget, joint=method == "joint")


def require_blocks_below(
    network: nn.Module, input_shape: tuple[int, ...], budget: float, *, method: Literal["scale", "joint"]
) -> None:
    """ModelError where a block of the network, as it is stored, is not proved to be below the budget."""
    for block in residual_blocks(network, input_shape):
        if (bound := block.bound(1.0, joint=method == "joint")) > budget:
            raise ModelError(
                f"the residual block {block.path} has a bound of {bound:.6g}, above the budget {budget:g}: its layers "
                "do not scale it; use the method 'spectral'"
            )


def _shrink(block: Block, budget: float, *, joint: bool) -> None:
    floor = spectral_norm(block.shortcut).upper
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
    """A factor in (0, 1] on the branch at which the bound, computed there, is below the budget; 1 where it fits.

    False position: the constant is a convex function of the factor, so the chord lies above it and each guess is
    nearly admissible. Every factor that is returned was tried, or is 0.
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


def _block(network: nn.Module, found: Region) -> Block:
    turns = alternating(found)
    path = found.path()
    outer = _last_layer(network, found.branches[0]) if len(found.branches) == 1 else None
    if turns is None or outer is None or found.shortcut is None:
        raise ModelError(
            f"the residual block {path} has no single branch of layers and activations in turn that ends in a layer; "
            "use the method 'spectral'"
        )
    straight = [_last_layer(network, operand) for operand in found.operands if operand.linear]
    layers, slopes = turns
    projection = straight[0] if len(straight) == 1 else None
    return Block(path, found.shortcut, tuple(layers), tuple(slopes), outer, projection)


def _last_layer(network: nn.Module, operand: Operand) -> Affine | None:
    """The module that ends the operand, with nothing but linear maps after it."""
    for node in reversed(operand.nodes):
        if not isinstance(node.piece, Linear):
            return None
        module = _module_at(network, node)
        if isinstance(module, Affine) and module.weight is not None:
            return module
    return None


def _module_at(network: nn.Module, node: Node) -> nn.Module | None:
    try:
        return network.get_submodule(node.path)
    except AttributeError:
        return None


def _multiply(layer: Affine, factor: float) -> None:
    """Weight and bias, so that what the layer gives out is multiplied."""
    with torch.no_grad():
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)
