"""Budgets for existing networks: every layer, or every residual block, is brought below a Lipschitz constant."""

import copy
import math
from typing import Literal, get_args

from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from robustres.certify.graph.capture import refusing_what_fails
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError, ModelError
from robustres.models import materialise
from robustres.models.blocks.stated import map_of
from robustres.models.constraints.operator_norm import STORAGE_SLACK, Geometry
from robustres.training.block_budget import require_blocks_below, shrink_blocks
from robustres.training.capped_norm import CappedNorm
from robustres.training.folded_layer import FoldedLayer, Layer, folded_layers
from robustres.training.graph_layers import bring_below, graph_layers, require_below
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

    method: "spectral" divides the weight of each layer by the factor by which its true operator norm exceeds the
        budget; "clip" clips the singular values of nn.Conv2d and nn.Linear instead, so that only the large ones change;
        "scale" shrinks the branch of each residual block S x + F(x) until the textbook bound |S| + |F| fits; "joint"
        until the joint bound fits, which shrinks it less. The blocks are found in the network's graph, whatever its
        origin.
    input_shape: (C, H, W) of the images; the norm of a convolution depends on the size that it sees.
    trainable: apply "spectral" as a parametrisation, so that training can continue below the budget (`materialise` at
        the end); batch normalisation is then folded into the preceding convolution, since training would change it.
    The layers are found in the captured graph: all operations that multiply by weights, including functional and
    subclassed layers, learnt scales and transposed convolutions. A scale or a batch normalisation directly after a
    layer is part of that layer, elsewhere it is a separate layer. The result, as it is stored, is checked by the
    certifier. The copy has the modules and the names of the original, batch normalisation included, and only weights
    differ (weights that were parametrised or derived by hooks become plain): it is saved and loaded like the original.
    The copy is in evaluation mode. Enforcing the same budget again changes nothing. The given model is left unchanged.
    Raises InputError for an impossible budget, ModelError naming a layer that cannot be brought below it,
    UnsupportedOperationError for a network that the certifier cannot read.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not (math.isfinite(lipschitz) and lipschitz > 0):
        raise InputError(f"the budget must be positive, got {lipschitz:g}")
    if trainable and method != "spectral":
        raise InputError(f"only the method 'spectral' can continue training, got {method!r}")
    with refusing_what_fails("bringing it below a budget"):
        return _enforced(model, lipschitz, input_shape, method, trainable)


def _enforced(
    model: nn.Module, lipschitz: float, input_shape: tuple[int, ...], method: Method, trainable: bool
) -> nn.Module:
    """`enforce` with settings that were checked."""
    network = _folded(materialise(model)) if trainable else materialise(model)
    if method == "scale" or method == "joint":
        shrink_blocks(network, input_shape, lipschitz, method=method)
        require_blocks_below(network, input_shape, lipschitz, method=method)
        return network
    if trainable:
        return _trainable(network, input_shape, lipschitz)
    if method == "clip":
        for place in folded_layers(network, input_shape):
            if spectral_norm(place.map).upper > lipschitz:
                place.replace(_clipped(place, lipschitz))
    bring_below(network, input_shape, lipschitz)
    require_below(network, input_shape, lipschitz)
    return network


def _trainable(network: nn.Module, input_shape: tuple[int, ...], budget: float) -> nn.Module:
    """Bring every layer below the budget by a parametrisation; raises ModelError for a layer without its own plain
    module.
    """
    places = folded_layers(network, input_shape)
    names = {module: name for name, module in network.named_modules()}
    covered = {f"{names[place.layer]}.weight".removeprefix(".") for place in places}
    for layer in graph_layers(network, input_shape):
        if layer.weight not in covered or layer.shared:
            raise ModelError(
                f"{layer} cannot go on training below a budget, which only plain nn.Conv2d and nn.Linear modules can"
            )
    for place in places:
        constraint = CappedNorm(_geometry(place.layer, place.shape), budget)
        parametrize.register_parametrization(place.layer, "weight", constraint)
    require_below(materialise(network), input_shape, budget)
    return network


def _clipped(place: FoldedLayer, budget: float) -> Tensor:
    """A folded weight below the budget: clipped, then divided by the factor by which its norm still exceeds it."""
    layer = place.folded
    layer.weight.data = clipped(layer, place.shape, budget)
    upper = spectral_norm(map_of(layer, place.shape)).upper
    return layer.weight.detach() * min(1.0, budget / (upper * (1 + STORAGE_SLACK)))


def _folded(network: nn.Module) -> nn.Module:
    """The network without batch normalisation; raises ModelError if one cannot be folded."""
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
    """Raise ModelError for convolutions that a parametrisation does not cover."""
    if isinstance(layer, nn.Linear):
        return Geometry((layer.in_features, 1, 1))
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or len({*layer.stride}) > 1 or len({*layer.padding}) > 1:
        raise ModelError(
            "only zero-padded convolutions without groups and dilation can continue training below a budget"
        )
    channels, height, width = shape
    return Geometry((channels, height, width), int(layer.stride[0]), int(layer.padding[0]))
