"""Rules for operations that have bounds near an image only: roots, reciprocals, logarithms, quotients and products of
two values, attention. Where bounds for all inputs are asked for, they are refused."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from robustres.certify.graph.call import Call, NotCoveredError
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Elementwise, Node, Product
from robustres.certify.graph.operation_rules import call_of
from robustres.certify.graph.registry import REASONS, completion, rule
from robustres.certify.graph.rules_arithmetic import combination, scaled_by_constant
from robustres.certify.graph.rules_linear import product_of_states
from robustres.certify.graph.rules_written import whole_power
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.curves import Exp, Log, Power, Reciprocal
from robustres.certify.maps.linear_map import Identity, Scaled
from robustres.certify.maps.nonlinear import LogSoftmax, LogSumExp, Softmax

CURVES: dict[str, Callable[[Call], Activation]] = {
    "exp": lambda call: Exp(),
    "log": lambda call: Log(),
    "sqrt": lambda call: Power(0.5),
    "rsqrt": lambda call: Power(-0.5),
    "reciprocal": lambda call: Reciprocal(),
    "pow": lambda call: _power(float(call.constant("exponent"))),
}


def _power(exponent: float) -> Activation:
    if not math.isfinite(exponent) or exponent == 0:
        raise NotCoveredError(f"with the exponent {exponent:g}")
    return Reciprocal() if exponent == -1 else Power(exponent)


# These come after those of `rules_written`, which is imported above and finds activations that are written out.
@completion(*CURVES)
def curve(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """The function of a value, near an image."""
    call = call_of(origin, values, captured)
    if not captured.near_an_image or not isinstance(call.arguments.get("self"), Node) or whole_power(origin):
        return None
    return call.elementwise(call.node("self"), CURVES[call.name](call))


@completion("div", "divide", "true_divide")
def quotient(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """A quotient as a product with a reciprocal, near an image."""
    call = call_of(origin, values, captured)
    rounds = call.arguments.get("rounding_mode") is not None
    if not captured.near_an_image or rounds or not isinstance(call["other"], Node):
        return None
    left, right = call["self"], call["other"]
    inverse = call.make(Elementwise(Reciprocal()), right, shape=right.shape)
    if not isinstance(left, Node):
        return scaled_by_constant(call, inverse, left)
    return call.make(Product(), call.expanded(left), call.expanded(inverse))


@rule("log_softmax", "_log_softmax")
def logarithms(call: Call) -> Node:
    """x - log sum exp x: as one map, or near an image as a difference."""
    source = call.node("self")
    (axis,) = call.axes(source, call["dim"])
    if not call.captured.near_an_image:
        return call.make(LogSoftmax(axis, source.shape[axis]), source)
    few = (*source.shape[:axis], 1, *source.shape[axis + 1 :])
    total = call.make(LogSumExp((axis,), source.shape[axis], True), source, shape=few)
    return combination(call, [(source, 1.0), (total, -1.0)])


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Node:
    """softmax(query key^T scale) value."""
    names = ("query", "key", "value")
    query, key, value = (_near(call).node(name) for name in names)
    if call["attn_mask"] is not None or call["is_causal"] or call.arguments.get("enable_gqa"):
        raise NotCoveredError("with a mask or grouped queries")
    if call["dropout_p"]:
        raise NotCoveredError("with dropout, whose output is random")
    lead = "abcdefgh"[: len(query.shape) - 2]
    scale = query.shape[-1] ** -0.5 if call["scale"] is None else float(call["scale"])
    shape = (*query.shape[:-1], key.shape[-2])
    scores = product_of_states(call, (query, key), (f"{lead}pk", f"{lead}qk"), f"{lead}pq")
    scores = call.linear(scores, Scaled(scale, Identity(shape), 2))
    weights = call.make(Softmax(len(shape) - 1, shape[-1]), scores, shape=shape)
    return product_of_states(call, (weights, value), (f"{lead}pq", f"{lead}qk"), f"{lead}pk")


def _near(call: Call) -> Call:
    if not call.captured.near_an_image:
        raise NotCoveredError(REASONS.get(call.name, ""))
    return call
