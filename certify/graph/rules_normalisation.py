"""Rules for normalisation by the statistics of each sample: layer, group, instance and RMS normalisation."""

import math
from typing import Any

import torch
from torch import Tensor

from robustres.certify.graph.call import Call, NotCoveredError
from robustres.certify.graph.network import Node
from robustres.certify.graph.registry import rule
from robustres.certify.graph.rules_linear import batch_norm
from robustres.certify.maps.lengths import Normalisation


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def over_last_axes(call: Call) -> Node:
    """Over the last axes, with a factor and a shift for each coordinate of these axes."""
    group = math.prod(call["normalized_shape"])
    centred = "rms" not in call.name
    return _normalised(call, group, call["weight"], call.arguments.get("bias"), centred=centred)


@rule("group_norm", "native_group_norm")
def over_groups(call: Call) -> Node:
    """Over groups of channels and all pixels, with a factor and a shift for each channel."""
    source = call.node("input")
    groups = int(call.arguments.get("num_groups", call.arguments.get("group")))
    return _normalised(call, math.prod(source.shape) // groups, *_by_channel(call, source))


@rule("instance_norm")
def over_pixels(call: Call) -> Any:
    """Over the pixels of every channel; with running statistics it is a batch normalisation."""
    if not call["use_input_stats"]:
        return batch_norm(call)
    source = call.node("input")
    return _normalised(call, math.prod(source.shape[1:]), *_by_channel(call, source))


def _by_channel(call: Call, source: Node) -> list[Any]:
    wide = (-1, *[1] * (len(source.shape) - 1))
    values = [call.constant(name) for name in ("weight", "bias")]
    return [value.reshape(wide) if isinstance(value, Tensor) else None for value in values]


def _normalised(call: Call, group: int, weight: Any, bias: Any, *, centred: bool = True) -> Node:
    eps = call.arguments.get("eps")
    eps = torch.finfo(torch.float64).eps if eps is None else float(eps)
    if not 0 < eps < math.inf:
        raise NotCoveredError("with eps of 0, where it is infinitely steep at constant inputs")
    if isinstance(weight, Node) or isinstance(bias, Node):
        raise NotCoveredError("whose weight or bias depends on the input")
    gamma = call.per_sample(1.0 if weight is None else weight)
    piece = Normalisation(eps, gamma, group, centred)
    if not math.isfinite(piece.scale):
        raise NotCoveredError("with a weight that is not finite")
    node = call.make(piece, call.node("input"))
    return node if bias is None else call.plus(node, bias)
