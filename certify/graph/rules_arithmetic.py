"""Rules for sums, differences, and products with constants."""

import math
from typing import Any

import torch
from torch import Tensor

from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Merge, Node
from robustres.certify.graph.operation_rules import Call, NotCoveredError, rule
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import ChannelScale, Identity, LinearMap, Scaled, Shape


@rule("add", "sub", "rsub")
def added(call: Call) -> Node:
    """left + alpha right and its relatives; a constant operand is a shift."""
    name = str(call.origin.target)
    left, right, alpha = call["self"], call["other"], call.constant("alpha")
    left_factor, right_factor = 1.0, float(1 if alpha is None else alpha)
    if "rsub" in name:
        left_factor, right_factor = -right_factor, 1.0
    elif "sub" in name:
        right_factor = -right_factor
    terms = [
        _scaled(call, call.expanded(term), factor)
        for term, factor in ((left, left_factor), (right, right_factor))
        if isinstance(term, Node)
    ]
    if len(terms) == 2:
        return call.make(Merge("sum"), *terms)
    constant, factor = (right, right_factor) if isinstance(left, Node) else (left, left_factor)
    return call.same(terms[0], shift=abs(factor) * call.size(constant))


@rule("neg")
def negated(call: Call) -> Node:
    """-x."""
    return _scaled(call, call.only_input, -1.0)


@rule("mul", "multiply")
def multiplied(call: Call) -> Node:
    """A product with a constant; the product of two inputs has no Lipschitz constant."""
    left, right = call["self"], call["other"]
    if isinstance(left, Node) and isinstance(right, Node):
        raise NotCoveredError("of two values that both depend on the input, which has no global bound")
    source, factor = (left, right) if isinstance(left, Node) else (right, left)
    return scaled_by_constant(call, source, factor)


@rule("div", "divide", "true_divide")
def divided(call: Call) -> Node:
    """A quotient by a constant."""
    if call.arguments.get("rounding_mode") is not None:
        raise NotCoveredError("with rounding, which is not continuous")
    factor = call.constant("other")
    if not isinstance(call["self"], Node):
        raise NotCoveredError("by a value that depends on the input")
    reciprocal = 1 / factor if isinstance(factor, Tensor) else 1 / factor if factor else math.inf
    return scaled_by_constant(call, call["self"], reciprocal)


def scaled_by_constant(call: Call, source: Node, factor: Any) -> Node:
    """`source` times a number or a constant tensor that broadcasts against it."""
    if not isinstance(factor, Tensor):
        return _scaled(call, call.expanded(source), float(factor))
    factors = factor.to(torch.float64)
    if not bool(torch.isfinite(factors).all()):
        raise NotCoveredError("with a constant that is not finite")
    if factors.numel() == 1:
        return _scaled(call, call.expanded(source), float(factors))
    factors = factors.expand(BATCH, *call.out_shape) if factors.ndim <= len(call.out_shape) + 1 else factors
    if factors.shape != (BATCH, *call.out_shape) or not bool((factors == factors[0]).all()):
        raise NotCoveredError("with a constant that differs between the samples of a batch")
    return call.linear(call.expanded(source), _diagonal(factors[0], call.out_shape))


def _diagonal(factors: Tensor, shape: Shape) -> LinearMap:
    """The map that multiplies by `factors`, in the most special form that it has."""
    per_channel = factors.reshape(shape[0], -1)
    if bool((per_channel == per_channel[:, :1]).all()):
        return ChannelScale(per_channel[:, 0].clone(), shape)
    return Diagonal(factors)


def _scaled(call: Call, source: Node, factor: float) -> Node:
    if not math.isfinite(factor):
        raise NotCoveredError("with a constant that is not finite")
    if factor == 1:
        return source
    return call.linear(source, Scaled(factor, Identity(source.shape)))
