"""Rules for sums, differences, and products and quotients with constants."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustres.certify.graph.call import Call, NotCoveredError
from robustres.certify.graph.network import Merge, Node
from robustres.certify.graph.registry import rule
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Identity, LinearMap, Scaled, Shape

PRODUCT = (
    "of two values that both depend on the input, which has no global bound (domain='unit' bounds the elementwise "
    "product on images in [0, 1])"
)


@rule("add", "sub", "subtract", "rsub")
def added(call: Call) -> Node:
    """left + alpha right and its variants."""
    alpha = call.constant("alpha")
    left, right = 1.0, float(1 if alpha is None else alpha)
    if call.name == "rsub":
        left, right = -right, 1.0
    elif "sub" in call.name:
        right = -right
    return combination(call, [(call["self"], left), (call["other"], right)])


@rule("neg", "negative")
def negated(call: Call) -> Node:
    """-x."""
    return combination(call, [(call.only_input, -1.0)])


@rule("mul", "multiply")
def multiplied(call: Call) -> Node:
    """A product with a constant."""
    left, right = call["self"], call["other"]
    if isinstance(left, Node) and isinstance(right, Node):
        raise NotCoveredError(PRODUCT)
    source, factor = (left, right) if isinstance(left, Node) else (right, left)
    return scaled_by_constant(call, source, factor)


@rule("div", "divide", "true_divide")
def divided(call: Call) -> Node:
    """A quotient by a constant."""
    if call.arguments.get("rounding_mode") is not None:
        raise NotCoveredError("with rounding, which is not continuous")
    if isinstance(call["other"], Node):
        raise NotCoveredError("by a value that depends on the input")
    return scaled_by_constant(call, call.node("self"), reciprocal(call.per_sample(call["other"])), seen=1)


@rule("lerp")
def interpolated(call: Call) -> Node:
    """self + weight (end - self)."""
    weight = call.per_sample(call.constant("weight"))
    return combination(call, [(call["self"], 1 - weight), (call["end"], weight)], seen=1)


@rule("addcmul", "addcdiv")
def with_product(call: Call) -> Node:
    """self + value tensor1 tensor2, or self + value tensor1 / tensor2."""
    value, left, right = float(call["value"]), call["tensor1"], call["tensor2"]
    quotient = call.name == "addcdiv"
    if isinstance(right, Node) and (quotient or isinstance(left, Node)):
        raise NotCoveredError("by a value that depends on the input" if quotient else PRODUCT)
    source, factor = (right, call.per_sample(left)) if isinstance(right, Node) else (left, call.per_sample(right))
    return combination(
        call, [(call["self"], 1.0), (source, value * (reciprocal(factor) if quotient else factor))], seen=2
    )


def reciprocal(divisor: float | Tensor) -> float | Tensor:
    """1 / divisor in float64; infinite for 0, which no rule accepts."""
    if isinstance(divisor, Tensor):
        return 1 / divisor.to(torch.float64)
    return 1 / divisor if divisor else math.inf


def combination(call: Call, terms: Sequence[tuple[Any, float | Tensor]], *, seen: int = 0) -> Node:
    """The sum of values times constant factors, broadcast against each other; constant values become a shift."""
    states = [scaled_by_constant(call, value, factor, seen=seen) for value, factor in terms if isinstance(value, Node)]
    constants = [(value, factor) for value, factor in terms if not isinstance(value, Node)]
    scaled = [torch.as_tensor(value, dtype=torch.float64) * factor for value, factor in constants]
    total = states[0] if len(states) == 1 else call.make(Merge("sum"), *states)
    return call.plus(total, *scaled) if constants else total


def scaled_by_constant(call: Call, source: Node, factor: Any, *, seen: int = 0) -> Node:
    """`source` times a number or a constant tensor, broadcast against it; `seen`: relative roundings of the factor."""
    factors = call.per_sample(factor)
    if not (math.isfinite(factors) if isinstance(factors, float) else bool(torch.isfinite(factors).all())):
        raise NotCoveredError("with a constant that is not finite")
    expanded = call.expanded(source)
    if isinstance(factors, float):
        return expanded if factors == 1 else call.linear(expanded, Scaled(factors, Identity(expanded.shape), seen))
    return call.linear(expanded, _diagonal(factors.expand(call.out_shape), call.out_shape, seen))


def _diagonal(factors: Tensor, shape: Shape, seen: int) -> LinearMap:
    """The map that multiplies by `factors`, with one factor for each channel if that suffices."""
    per_channel = factors.reshape(shape[0], -1)
    if bool((per_channel == per_channel[:, :1]).all()):
        return Diagonal(per_channel[:, 0].clone(), shape, seen)
    return Diagonal(factors.clone(), shape, seen)
