"""Values divided by a function of their own length: `F.normalize`, x / (|x| + eps), layer and RMS normalisation that is
written out. Each is a radial map z -> z s(|z|), if the length or the mean square is of the value itself."""

import math
from collections.abc import Mapping
from typing import Any

from torch import fx

from robustres.certify.graph.call import Call, NotCoveredError, name_of, unbatched
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Node
from robustres.certify.graph.operation_rules import call_of
from robustres.certify.graph.registry import completion
from robustres.certify.graph.rules_written import SCALAR, is_constant, read, whole_power
from robustres.certify.graph.written_conditions import NotScalarError
from robustres.certify.maps.lengths import Length, Radial
from robustres.certify.maps.piecewise_linear import Abs
from robustres.certify.maps.scalar_expression import Applied, Constant, Expression, Inverse, Times, Variable
from robustres.certify.maps.written import Written

LENGTHS, SUMS = ("linalg_vector_norm", "norm"), ("mean", "sum")


@completion("div", "divide", "true_divide", "mul", "multiply")
def radial(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """A product or quotient of a value and a function of its own length, for all inputs."""
    if captured.near_an_image or len(origin.args) != 2 or origin.kwargs:
        return None
    quotient = "div" in name_of(origin)
    pairs: list[Any] = [origin.args] if quotient else [origin.args, origin.args[::-1]]
    for value, other in pairs:
        if not isinstance(value, fx.Node) or not isinstance(other, fx.Node) or not isinstance(values.get(value), Node):
            continue
        while name_of(other) in ("expand", "expand_as"):
            other = other.args[0]
        try:
            (length,) = _lengths(other, values, captured)
            if _measured(length, values, captured) is not value or not call_of(length, values, captured)["keepdim"]:
                continue
            return _made(Call(origin, {}, captured), value, length, other, values, quotient)
        except (NotScalarError, NotCoveredError, ValueError, OverflowError, ZeroDivisionError):
            continue
    return None


@completion("sqrt", "rsqrt", "pow", "div", "divide", "true_divide", "mul", "multiply", "reciprocal", *SUMS)
def of_length(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """A scalar function of a sum or mean of squares, as a function of the length of the vector: sqrt(sum(x^2) + eps).

    On images in [0, 1]^n too, where a square has a bound but its root does not.
    """
    if captured.near_an_image:
        return None
    try:
        (total,) = _lengths(origin, values, captured)
        source, length, start = _length_of(total, values, captured)
        function = Written(read(origin, total, values, captured, start=start))
    except (NotScalarError, NotCoveredError, ValueError, OverflowError, ZeroDivisionError):
        return None
    if not math.isfinite(function.constant):
        return None
    call = Call(origin, {}, captured)
    return call.elementwise(call.make(length, source, shape=unbatched(total.meta["val"])), function)


def _length_of(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> tuple[Node, Length, Expression]:
    """The vector, its length, and a length or a sum or mean of squares as an expression of that length."""
    source: Node = values[_measured(origin, values, captured)]
    known = call_of(origin, values, captured)
    axes = known.axes(source, known["dim"])
    length = Length(axes, math.prod(source.shape[axis] for axis in axes), keepdim=bool(known["keepdim"]))
    start: Expression = Applied(Abs(), Variable())
    if name_of(origin) in SUMS:
        part = start if name_of(origin) == "sum" else Times(Constant(1 / math.sqrt(length.length)), start)
        start = Times(part, part)
    return source, length, start


def _made(
    call: Call, value: fx.Node, length: fx.Node, other: fx.Node, values: Mapping[fx.Node, Any], quotient: bool
) -> Node:
    source, measured, start = _length_of(length, values, call.captured)
    share = read(other, length, values, call.captured, start=start)
    piece = Radial(measured.axes, measured.length, Inverse(share) if quotient else share)
    if not math.isfinite(piece.bound.upper):
        raise NotScalarError
    return call.make(piece, source)


def _lengths(other: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> set[fx.Node]:
    """The lengths and sums or means of squares from which `other` is computed by scalar operations alone."""
    found, stack = set(), [other]
    while stack:
        node = stack.pop()
        if _measured(node, values, captured) is not None:
            found.add(node)
        elif name_of(node) not in SCALAR:
            raise NotScalarError
        else:
            stack += [parent for parent in node.all_input_nodes if not is_constant(values.get(parent))]
    return found


def _measured(node: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Any:
    """The value whose length, or the sum or mean of whose squares, this is; None for others."""
    part = node.args[0] if node.args else None
    if name_of(node) not in (*LENGTHS, *SUMS) or not isinstance(part, fx.Node):
        return None
    if name_of(node) in LENGTHS:
        given = call_of(node, values, captured).arguments
        return part if given.get("ord", given.get("p")) in (None, 2) else None
    same = name_of(part) in ("mul", "multiply") and part.args[0] is part.args[1]
    return part.args[0] if same or whole_power(part) == 2 else None
