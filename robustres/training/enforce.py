"""Budgets for networks that exist already: every layer, or every residual block, brought below a Lipschitz constant."""

import copy
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from robustres.certify.joint import branch_bound
from robustres.certify.linear_map import Identity, LinearMap
from robustres.certify.spectral_norm import spectral_norm
from robustres.errors import InputError, ModelError
from robustres.models import materialise
from robustres.models.operator_norm import STORAGE_SLACK, Geometry
from robustres.models.ordinary import PreActivationBlock, ResidualBlock
from robustres.models.stated import map_of
from robustres.training.capped_norm import CappedNorm
from robustres.training.singular_value_clipping import clipped

Method = Literal["spectral", "clip", "scale", "joint"]
Layer = nn.Conv2d | nn.Linear
JOINT_EFFORT = 0.2  # of each evaluation of the joint bound, see robustres.certify.joint


def enforce(
    model: nn.Module,
    *,
    lipschitz: float,
    input_shape: tuple[int, ...],
    method: Method = "spectral",
    trainable: bool = False,
) -> nn.Module:
    """A copy of the network whose layers or residual blocks provably have a Lipschitz constant of at most `lipschitz`.

    method: "spectral" divides the weight of each convolution and dense layer by what its true operator norm exceeds
        the budget; "clip" clips its singular values instead, so that only the large ones change; "scale" shrinks the
        branch of each residual block S x + F(x) until the textbook bound |S| + |F| fits; "joint" until the joint
        bound fits, which shrinks it less. "scale" and "joint" are for the residual blocks of `residual_net`.
    input_shape: (C, H, W) of the images; the norm of a convolution depends on the size that it sees.
    trainable: "spectral" as a parametrisation, so that training goes on below the budget (`materialise` at the end).
    Batch normalisation is folded into the convolution before it. The copy is in evaluation mode and ordinary: it can
    be saved, copied and moved. Applying it again changes nothing. The model given is left as it was.
    Raises InputError for an impossible budget, ModelError for layers that have no norm here.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not (math.isfinite(lipschitz) and lipschitz > 0):
        raise InputError(f"the budget must be positive, got {lipschitz:g}")
    if trainable and method != "spectral":
        raise InputError(f"only the method 'spectral' can go on training, got {method!r}")
    network = _folded(materialise(model))
    shapes = _input_shapes(network, input_shape)
    if method in {"scale", "joint"}:
        _enforce_blocks(network, shapes, lipschitz, joint=method == "joint")
        return network
    for layer, shape in shapes.items():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if trainable:
            parametrize.register_parametrization(layer, "weight", CappedNorm(_geometry(layer, shape), lipschitz))
        elif method == "clip":
            _replace(layer, _clipped_to(layer, shape, lipschitz))
        else:
            _replace(layer, _divided_to(layer, shape, lipschitz))
    return network


def _folded(network: nn.Module) -> nn.Module:
    """Without batch normalisation; ModelError where one cannot be folded away."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(module, norms) for module in network.modules()):
        return copy.deepcopy(network)
    try:
        fused = fuse(network)
    except Exception as error:
        raise ModelError(f"batch normalisation cannot be folded ({type(error).__name__}); fold it first") from error
    for name, module in fused.named_modules():
        if isinstance(module, norms):
            raise ModelError(f"{name} is a batch normalisation without a convolution before it; it has no budget here")
    return fused


def _input_shapes(network: nn.Module, input_shape: tuple[int, ...]) -> dict[nn.Module, tuple[int, ...]]:
    """The unbatched shape that each layer and each residual block receives, from one pass."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        shape = tuple(inputs[0].shape[1:])
        if shapes.setdefault(module, shape) != shape:
            raise ModelError(f"a {type(module).__name__} is used at two image sizes; it has two norms and no budget")

    kinds = (nn.Conv2d, nn.Linear, ResidualBlock, PreActivationBlock)
    hooks = [module.register_forward_hook(record) for module in network.modules() if isinstance(module, kinds)]
    probe = next(network.parameters())
    try:
        with torch.no_grad():
            network(probe.new_zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _divided_to(layer: Layer, shape: tuple[int, ...], budget: float) -> Tensor:
    """The weight, divided by what its norm exceeds the budget; as it is where it does not."""
    upper = spectral_norm(map_of(layer, shape)).upper
    return layer.weight if upper <= budget else layer.weight * (budget / (upper * (1 + STORAGE_SLACK)))


def _clipped_to(layer: Layer, shape: tuple[int, ...], budget: float) -> Tensor:
    """The weight with clipped singular values, then divided by what little its norm still exceeds the budget."""
    if spectral_norm(map_of(layer, shape)).upper <= budget:
        return layer.weight
    _replace(layer, clipped(layer, shape, budget))
    return _divided_to(layer, shape, budget)


def _replace(layer: Layer, weight: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)


def _geometry(layer: Layer, shape: tuple[int, ...]) -> Geometry:
    """ModelError for the convolutions that a parametrisation does not cover."""
    if isinstance(layer, nn.Linear):
        return Geometry((layer.in_features, 1, 1))
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or len({*layer.stride}) > 1 or len({*layer.padding}) > 1:
        raise ModelError("only zero-padded convolutions without groups and dilation can go on training below a budget")
    channels, height, width = shape
    return Geometry((channels, height, width), int(layer.stride[0]), int(layer.padding[0]))


def _enforce_blocks(
    network: nn.Module, shapes: dict[nn.Module, tuple[int, ...]], budget: float, *, joint: bool
) -> None:
    blocks = [module for module in shapes if isinstance(module, ResidualBlock | PreActivationBlock)]
    if not blocks:
        raise ModelError("there is no residual block of residual_net here; use the method 'spectral' or 'clip'")
    for block in blocks:
        inner, outer = block.branch[0][0], block.branch[2][0]  # type: ignore[index]
        layers = map_of(inner, shapes[inner]), map_of(outer, shapes[outer])
        shortcut = Identity(shapes[block]) if isinstance(block.shortcut, nn.Identity) else None
        along = shortcut or map_of(block.shortcut, shapes[block])
        floor = spectral_norm(along).upper
        if floor >= budget:
            raise InputError(
                f"a shortcut alone has norm {floor:.4g}, so no branch fits the budget {budget:g}; raise it"
            )
        # With an activation before the branch as well, only the triangle inequality holds.
        jointly = joint and isinstance(block, ResidualBlock)
        bound = _joint(along, *layers) if jointly else _textbook(floor, *layers)
        _replace(outer, outer.weight * _largest_share(bound, floor, budget))


def _textbook(floor: float, inner: LinearMap, outer: LinearMap) -> Callable[[float], float]:
    branch = spectral_norm(inner).upper * spectral_norm(outer).upper
    return lambda share: (floor + share * branch) * (1 + 1e-12)


def _joint(shortcut: LinearMap, inner: LinearMap, outer: LinearMap) -> Callable[[float], float]:
    return lambda share: branch_bound(shortcut, (inner, share * outer), slopes=((0.0, 1.0),), effort=JOINT_EFFORT).upper


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
