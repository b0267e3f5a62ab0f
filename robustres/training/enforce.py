"""Budgets for networks that exist already: every layer, or every residual block, brought below a Lipschitz constant."""

import copy
import math
from typing import Literal, get_args

from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError, ModelError
from robustres.models import materialise
from robustres.models.blocks.stated import map_of
from robustres.models.constraints.operator_norm import STORAGE_SLACK, Geometry
from robustres.training.block_budget import shrink_blocks
from robustres.training.capped_norm import CappedNorm
from robustres.training.folded_layer import FoldedLayer, Layer, folded_layers
from robustres.training.singular_value_clipping import clipped

Method = Literal["spectral", "clip", "scale", "joint"]


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
        bound fits, which shrinks it less. The blocks are found in the network's graph, whoever wrote it.
    input_shape: (C, H, W) of the images; the norm of a convolution depends on the size that it sees.
    trainable: "spectral" as a parametrisation, so that training goes on below the budget (`materialise` at the end);
        batch normalisation is then folded into the convolution before it, since training would change it.
    Otherwise the copy has the modules and the names of the original, batch normalisation included, and only weights
    differ: it is saved and loaded as the original is. A batch normalisation counts as a part of the convolution before
    it. The copy is in evaluation mode. Applying it again changes nothing. The model given is left as it was.
    Raises InputError for an impossible budget, ModelError for layers that have no norm here.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not (math.isfinite(lipschitz) and lipschitz > 0):
        raise InputError(f"the budget must be positive, got {lipschitz:g}")
    if trainable and method != "spectral":
        raise InputError(f"only the method 'spectral' can go on training, got {method!r}")
    network = _folded(materialise(model)) if trainable else materialise(model)
    if method == "scale" or method == "joint":
        shrink_blocks(network, input_shape, lipschitz, method=method)
        return network
    for place in folded_layers(network, input_shape):
        if trainable:
            constraint = CappedNorm(_geometry(place.layer, place.shape), lipschitz)
            parametrize.register_parametrization(place.layer, "weight", constraint)
        elif spectral_norm(place.map).upper > lipschitz:
            place.replace(_within(place, lipschitz, clip=method == "clip"))
    return network


def _within(place: FoldedLayer, budget: float, *, clip: bool) -> Tensor:
    """A folded weight below the budget: clipped where asked for, then divided by what its norm still exceeds it."""
    layer = place.folded
    if clip:
        layer.weight.data = clipped(layer, place.shape, budget)
    upper = spectral_norm(map_of(layer, place.shape)).upper
    return layer.weight.detach() * min(1.0, budget / (upper * (1 + STORAGE_SLACK)))


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


def _geometry(layer: Layer, shape: tuple[int, ...]) -> Geometry:
    """ModelError for the convolutions that a parametrisation does not cover."""
    if isinstance(layer, nn.Linear):
        return Geometry((layer.in_features, 1, 1))
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or len({*layer.stride}) > 1 or len({*layer.padding}) > 1:
        raise ModelError("only zero-padded convolutions without groups and dilation can go on training below a budget")
    channels, height, width = shape
    return Geometry((channels, height, width), int(layer.stride[0]), int(layer.padding[0]))
