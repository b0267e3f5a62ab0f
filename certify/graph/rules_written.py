"""Scalar functions written in several operations: hand-written SiLU, leaky ReLU, softsign, GELU."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from robustres.certify.graph.call import Call, NotCoveredError, name_of
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Node, Product
from robustres.certify.graph.operation_rules import call_of, completion
from robustres.certify.graph.rules_activation import ACTIVATIONS
from robustres.certify.graph.rules_shape import SAME
from robustres.certify.maps.activation import Activation, broadcast_size
from robustres.certify.maps.curves import Exp, Log, Power
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.piecewise_linear import Abs, Clamp
from robustres.certify.maps.scalar_expression import (
    Applied,
    Chosen,
    Constant,
    Expression,
    Inverse,
    Times,
    Total,
    Variable,
)
from robustres.certify.maps.smooth import RootOfSquare
from robustres.certify.maps.written import Written

COMPARISONS = {"gt": 1, "ge": 1, "greater": 1, "greater_equal": 1, "lt": -1, "le": -1, "less": -1, "less_equal": -1}
STRICT = frozenset({"gt", "greater", "lt", "less"})
LARGEST_POWER = 8
MOST_FUNCTIONS = 16  # of one value, if constants differ between its coordinates


class NotScalarError(Exception):
    """An operation that is not a scalar function, or is not known to be one."""


def _function(origin: fx.Node, base: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Activation:
    """One function, or one for each set of constants that occurs among the coordinates."""
    which, places = _functions(origin, base, values)
    read = [Written(_Reader(base, values, captured, place).read(origin)) for place in places]
    return read[0] if which is None else PerCoordinate(tuple(read), which)


def _functions(
    origin: fx.Node, base: fx.Node, values: Mapping[fx.Node, Any]
) -> tuple[Tensor | None, Sequence[int | None]]:
    """The set of constants of each coordinate (*shape), and one coordinate of each set; None for a single set."""
    stack, constants = [origin], dict[fx.Node, Tensor]()
    while stack:
        for parent in stack.pop().all_input_nodes:
            value = values.get(parent)
            if isinstance(value, Tensor) and not bool((value == value.flatten()[:1]).all()):
                constants[parent] = value.to(torch.float64)
            elif parent is not base and not _is_constant(value):
                stack.append(parent)
    if not constants:
        return None, (None,)
    shape = base.meta["val"].shape
    if any(not _fits(value.shape, shape) for value in constants.values()):
        raise NotScalarError
    rows = torch.stack([value.expand(shape).flatten(1) for value in constants.values()])
    if not bool((rows == rows[:, :1]).all()):
        raise NotScalarError
    sets, which = torch.unique(rows[:, 0], dim=1, return_inverse=True)
    if sets.shape[1] > MOST_FUNCTIONS:
        raise NotScalarError
    return which.reshape(shape[1:]), [int((which == k).nonzero()[0]) for k in range(sets.shape[1])]


def _fits(part: torch.Size, whole: torch.Size) -> bool:
    """Whether a constant of shape `part` can be expanded to `whole`."""
    return len(part) <= len(whole) and all(p in (1, w) for p, w in zip(reversed(part), reversed(whole), strict=False))


def _base(origin: fx.Node, values: Mapping[fx.Node, Any]) -> fx.Node:
    """The last value from which everything in `origin` is computed by scalar operations alone."""
    order = {node: place for place, node in enumerate(origin.graph.nodes)}
    frontier = {origin}
    while len(frontier) > 1 or not isinstance(values.get(next(iter(frontier))), Node) or origin in frontier:
        last = max(frontier, key=order.__getitem__)
        if name_of(last) not in SCALAR:
            raise NotScalarError
        frontier.remove(last)
        frontier |= {parent for parent in last.all_input_nodes if not _is_constant(values.get(parent))}
        if not frontier:
            raise NotScalarError
    return frontier.pop()


def _is_constant(value: Any) -> bool:
    return isinstance(value, Tensor | int | float)


class _Reader:
    """Converts the operations between a value and a result computed from it to an expression.

    place: the coordinate whose constants are used, if they differ.
    """

    def __init__(
        self, base: fx.Node, values: Mapping[fx.Node, Any], captured: Captured, place: int | None = None
    ) -> None:
        self.base, self.values, self.captured, self.place = base, values, captured, place
        self.known: dict[fx.Node, Expression] = {base: Variable()}

    def read(self, node: Any) -> Expression:
        """A node, or a constant, as an expression."""
        if not isinstance(node, fx.Node):
            return Constant(_number(node))
        if node in self.known:
            return self.known[node]
        known = self.values.get(node)
        if _is_constant(known):
            if isinstance(known, Tensor) and known.numel() > 1 and self.place is not None:
                known = known.expand(self.base.meta["val"].shape)[0].flatten()[self.place]
            return Constant(_number(known))
        value = node.meta["val"]
        if not isinstance(value, Tensor) or value.shape != self.base.meta["val"].shape:
            raise NotScalarError
        self.known[node] = found = self._operation(node)
        return found

    def _operation(self, node: fx.Node) -> Expression:
        name = name_of(node)
        if name in COMPARISONS or name == "logical_not":  # 1 or 0 in a product
            return self.condition(node, Constant(1.0), Constant(0.0))
        if node.meta["val"].dtype != torch.float64:  # integers round, and booleans add differently
            raise NotScalarError
        arguments = call_of(node, {parent: parent for parent in node.all_input_nodes}, self.captured).arguments
        if name in SAME:
            return self.read(next(value for value in arguments.values() if isinstance(value, fx.Node)))
        if name in READERS:
            return READERS[name](self, arguments)
        if name in ACTIVATIONS:
            known = {parent: self.values[parent] for parent in node.all_input_nodes}
            function = ACTIVATIONS[name](call_of(node, known, self.captured))
            if broadcast_size(function.parameters):
                raise NotScalarError
            first = arguments.get("self", arguments.get("input"))
            return Applied(function, self.read(first))
        raise NotScalarError

    def condition(self, node: Any, above: Expression, below: Expression) -> Expression:
        """A selection by comparing an affine function of the value, or its absolute value, with a number."""
        name = name_of(node) if isinstance(node, fx.Node) else ""
        if name == "logical_not":
            return self.condition(node.args[0], below, above)
        if name not in COMPARISONS:
            raise NotScalarError
        left, right = (self.read(side) for side in node.args[:2])
        strict = name in STRICT
        if COMPARISONS[name] < 0:
            left, right = right, left
        if isinstance(left, Constant):  # level > test: otherwise test >= level
            left, right, above, below, strict = right, left, below, above, not strict
        if not isinstance(right, Constant):
            left, right = Total(left, Times(Constant(-1.0), right)), Constant(0.0)
        folded = isinstance(left, Applied) and isinstance(left.function, Abs)
        factor, shift = _affine(left.inner if isinstance(left, Applied) and folded else left)
        level = Fraction(right.number)
        if factor == 0 or (folded and level < 0):
            raise NotScalarError
        if folded:
            places = sorted(((level - shift) / factor, (-level - shift) / factor))
            return Chosen(tuple(places), True, strict, above, below)
        return Chosen(((level - shift) / factor,), factor > 0, strict, above, below)


def _affine(expression: Expression) -> tuple[Fraction, Fraction]:
    """(a, b) of a x + b, exactly."""
    match expression:
        case Variable():
            return Fraction(1), Fraction(0)
        case Constant():
            return Fraction(0), Fraction(expression.number)
        case Inverse(inner=Constant(number=number)) if number:
            return Fraction(0), 1 / Fraction(number)
        case Total():
            (a, b), (c, d) = _affine(expression.left), _affine(expression.right)
            return a + c, b + d
        case Times():
            (a, b), (c, d) = _affine(expression.left), _affine(expression.right)
            if a == 0 or c == 0:
                return a * d + b * c, b * d
    raise NotScalarError


def _number(value: Any) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1 and not bool((value == value.flatten()[0]).all()):
            raise NotScalarError
        value = value.flatten()[0].to(torch.float64).item()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise NotScalarError
    return float(value)


def _scaled(factor: float, inner: Expression) -> Expression:
    return inner if factor == 1 else Times(Constant(factor), inner)


def _sum(sign: float, swapped: bool = False) -> Callable[[_Reader, Mapping[str, Any]], Expression]:
    def read(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
        alpha = sign * _number(1 if arguments.get("alpha") is None else arguments["alpha"])
        left, right = reader.read(arguments["self"]), reader.read(arguments["other"])
        if swapped:
            left, right = right, left
        return Total(left, _scaled(alpha, right))

    return read


def _product(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    return Times(reader.read(arguments["self"]), reader.read(arguments["other"]))


def _quotient(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    if arguments.get("rounding_mode") is not None:
        raise NotScalarError
    left, right = reader.read(arguments["self"]), reader.read(arguments["other"])
    return Times(left, Inverse(right))


def _root(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    """The square root; that of a square plus a constant is as steep as the length of a vector."""
    inner = reader.read(arguments["self"])
    match inner:
        case (
            Total(left=Times(left=value, right=other), right=Constant(number=shift))
            | Total(left=Constant(number=shift), right=Times(left=value, right=other))
        ) if value is other and shift > 0:
            return Applied(RootOfSquare(shift), value)
    return Applied(Power(0.5), inner)


def _power(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    exponent = _number(arguments["exponent"])
    if exponent == 0.5:
        return _root(reader, arguments)
    if exponent < 0:
        return Inverse(_power(reader, {**arguments, "exponent": -exponent}))
    if exponent not in range(1, LARGEST_POWER + 1):
        raise NotScalarError
    base = reader.read(arguments["self"])
    found = base
    for _ in range(int(exponent) - 1):
        found = Times(found, base)
    return found


def _chosen(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    above, below = reader.read(arguments["self"]), reader.read(arguments["other"])
    return reader.condition(arguments["condition"], above, below)


def _filled(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    return reader.condition(arguments["mask"], reader.read(arguments["value"]), reader.read(arguments["self"]))


def _sign(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
    """1, 0 at 0 alone, and -1."""
    factor, shift = _affine(reader.read(arguments["self"]))
    if factor == 0:
        raise NotScalarError
    zero, rising = (-shift / factor,), factor > 0
    return Chosen(zero, rising, True, Constant(1.0), Chosen(zero, rising, False, Constant(0.0), Constant(-1.0)))


def _extremum(largest: bool) -> Callable[[_Reader, Mapping[str, Any]], Expression]:
    def read(reader: _Reader, arguments: Mapping[str, Any]) -> Expression:
        left, right = reader.read(arguments["self"]), reader.read(arguments["other"])
        if isinstance(left, Constant):
            left, right = right, left
        if isinstance(right, Constant):
            return Applied(Clamp(right.number, math.inf) if largest else Clamp(-math.inf, right.number), left)
        # max(a, b) = b + max(a - b, 0)
        step = Applied(Clamp(0.0, math.inf) if largest else Clamp(-math.inf, 0.0), Total(left, _scaled(-1.0, right)))
        return Total(right, step)

    return read


READERS: dict[str, Callable[[_Reader, Mapping[str, Any]], Expression]] = {
    "add": _sum(1.0),
    **dict.fromkeys(("sub", "subtract"), _sum(-1.0)),
    "rsub": _sum(-1.0, swapped=True),
    **dict.fromkeys(("mul", "multiply"), _product),
    **dict.fromkeys(("div", "divide", "true_divide"), _quotient),
    **dict.fromkeys(("neg", "negative"), lambda reader, given: _scaled(-1.0, reader.read(given["self"]))),
    "pow": _power,
    "square": lambda reader, given: _power(reader, {**given, "exponent": 2}),
    "reciprocal": lambda reader, given: Inverse(reader.read(given["self"])),
    "sqrt": _root,
    "rsqrt": lambda reader, given: Inverse(_root(reader, given)),
    "log": lambda reader, given: Applied(Log(), reader.read(given["self"])),
    "log1p": lambda reader, given: Applied(Log(), Total(Constant(1.0), reader.read(given["self"]))),
    "exp": lambda reader, given: Applied(Exp(), reader.read(given["self"])),
    "expm1": lambda reader, given: Total(Applied(Exp(), reader.read(given["self"])), Constant(-1.0)),
    "where": _chosen,
    "masked_fill": _filled,
    **dict.fromkeys(("sign", "sgn"), _sign),
    **dict.fromkeys(("maximum", "fmax"), _extremum(largest=True)),
    **dict.fromkeys(("minimum", "fmin"), _extremum(largest=False)),
}
# Operations that act on every coordinate separately.
SCALAR = frozenset({*READERS, *COMPARISONS, "logical_not", *ACTIVATIONS, *SAME})


@completion(*SCALAR)
def written_out(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """The value of an operation as an activation of an earlier value; None if it is not one with finite slopes."""
    try:
        base = _base(origin, values)
        function = _function(origin, base, values, captured)
        while not math.isfinite(function.constant):  # the square of a clamp is bounded in terms of an earlier value
            base = _base(base, values)
            function = _function(origin, base, values, captured)
    except (NotScalarError, NotCoveredError, ValueError, OverflowError, ZeroDivisionError):
        return None
    call = Call(origin, {"self": values[base]}, captured)
    return call.elementwise(values[base], function)


@completion("mul", "multiply")
def product_on_domain(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """The product of two values on images in [0, 1]^n or near one, where both are bounded."""
    factors = [values.get(parent) for parent in origin.args[:2] if isinstance(parent, fx.Node)]
    if not captured.multiplies or len(factors) != 2 or not all(isinstance(factor, Node) for factor in factors):
        return None
    call = call_of(origin, values, captured)
    return call.make(Product(), *(call.expanded(factor) for factor in factors))  # type: ignore[arg-type]


@completion("pow", "square")
def power_on_domain(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """A whole power as a product of equal factors, on images in [0, 1]^n or near one."""
    base = values.get(origin.args[0]) if isinstance(origin.args[0], fx.Node) else None
    if not captured.multiplies or not isinstance(base, Node) or not whole_power(origin):
        return None
    call = call_of(origin, values, captured)
    found = base
    for _ in range(whole_power(origin) - 1):
        found = call.make(Product(), found, base)
    return found


def whole_power(origin: fx.Node) -> int:
    """The exponent of a power if it is one of 2, 3, ..., LARGEST_POWER, else 0."""
    exponent = (*origin.args[1:2], 2)[0] if name_of(origin) in ("pow", "square") else 0
    return int(exponent) if exponent in range(2, LARGEST_POWER + 1) else 0  # type: ignore[arg-type]
