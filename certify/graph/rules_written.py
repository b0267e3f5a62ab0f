"""Scalar functions written in several operations: hand-written SiLU, leaky ReLU, softsign, GELU."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from robustres.certify.graph.call import Call, NotCoveredError, name_of
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Merge, Node, Product
from robustres.certify.graph.operation_rules import call_of, is_cast_condition
from robustres.certify.graph.registry import completion
from robustres.certify.graph.rules_activation import ACTIVATIONS
from robustres.certify.graph.rules_shape import SAME
from robustres.certify.graph.written_conditions import NotScalarError, chosen, compared
from robustres.certify.maps.activation import Activation, broadcast_size
from robustres.certify.maps.curves import Exp, Log, Power
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.piecewise_linear import Clamp
from robustres.certify.maps.scalar_expression import (
    Applied,
    Constant,
    Exponential,
    Expression,
    Inverse,
    Times,
    Total,
    Variable,
)
from robustres.certify.maps.smooth import RootOfSquare, Sigmoid, Softplus
from robustres.certify.maps.written import Written

LARGEST_POWER = 8
LARGEST_EXPONENT = 704.0  # up to which exp does not overflow
MOST_FUNCTIONS = 16  # of one value, if constants differ between its coordinates


def _function(origin: fx.Node, base: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Activation:
    """One function, or one for each set of constants that occurs among the coordinates."""
    which, places = _functions(origin, base, values)
    found = [Written(read(origin, base, values, captured, place)) for place in places]
    return found[0] if which is None else PerCoordinate(tuple(found), which)


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
            elif parent is not base and not is_constant(value):
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
        frontier |= {parent for parent in last.all_input_nodes if not is_constant(values.get(parent))}
        if not frontier:
            raise NotScalarError
    return frontier.pop()


def is_constant(value: Any) -> bool:
    """Whether a value of the graph does not depend on the input."""
    return isinstance(value, Tensor | int | float)


def read(
    origin: fx.Node,
    base: fx.Node,
    values: Mapping[fx.Node, Any],
    captured: Captured,
    place: int | None = None,
    start: Expression = Variable(),  # noqa: B008
) -> Expression:
    """The operations between a value and a result computed from it, as an expression.

    place: the coordinate whose constants are used, if they differ. start: the value itself.
    """
    shape = base.meta["val"].shape
    known: dict[fx.Node, Any] = {base: start}

    def part_of(node: fx.Node) -> Any:
        if node not in known:
            known[node] = values[node] if is_constant(values.get(node)) else operation(node)
        return known[node]

    def operand(value: Any) -> Any:
        if isinstance(value, Tensor) and value.numel() > 1 and place is not None:
            value = value.expand(shape)[0].flatten()[place]
        return Constant(_number(value)) if is_constant(value) else value

    def operation(node: fx.Node) -> Expression:
        value, name = node.meta["val"], name_of(node)
        exact = isinstance(value, Tensor) and (
            value.dtype == torch.float64 or name in CONDITIONS or is_cast_condition(node)
        )
        if not exact or value.shape != shape:  # integers round, and booleans add differently
            raise NotScalarError
        call = call_of(node, {parent: part_of(parent) for parent in node.all_input_nodes}, captured)
        if name in READERS:
            return READERS[name](**{key: operand(given) for key, given in call.arguments.items()})
        if name not in SCALAR:
            raise NotScalarError
        inner, *others = (given for given in call.arguments.values() if isinstance(given, Expression))
        if name in SAME:
            return inner
        function = ACTIVATIONS[name](call)
        if others or broadcast_size(function.parameters):
            raise NotScalarError
        return Applied(function, inner)

    return part_of(origin)  # type: ignore[no-any-return]


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


def _sum(left: Expression, right: Expression, alpha: Constant | None, sign: float) -> Expression:
    return Total(left, _scaled(sign * (1.0 if alpha is None else alpha.number), right))


def _inverse(inner: Expression) -> Expression:
    """1 / inner; that of 1 + exp(z) is the sigmoid of -z."""
    inverse, z = Inverse(inner), _exponent(inner)
    return inverse if z is None else Exponential(inverse, Applied(Sigmoid(), _scaled(-1.0, z)), z)


def _log(inner: Expression) -> Expression:
    """The logarithm; that of 1 + exp(z) is softplus."""
    log, z = Applied(Log(), inner), _exponent(inner)
    return log if z is None else Exponential(log, Applied(Softplus(1.0, math.inf), z), z, LARGEST_EXPONENT)


def _product(left: Expression, right: Expression) -> Expression:
    """left right; exp(z) / (1 + exp(z)) is the sigmoid of z."""
    product = Times(left, right)
    for one, other in ((left, right), (right, left)):
        match one, other:
            case Applied(function=Exp(), inner=z), Exponential(computed=Inverse(inner=below)) if _exponent(below) is z:
                return Exponential(product, Applied(Sigmoid(), z), z, LARGEST_EXPONENT)
    return product


def _exponent(expression: Expression) -> Expression | None:
    """z if the expression is 1 + exp(z)."""
    match expression:
        case (
            Total(left=Constant(number=1.0), right=Applied(function=Exp(), inner=z))
            | Total(left=Applied(function=Exp(), inner=z), right=Constant(number=1.0))
        ):
            return z
    return None


def _quotient(self: Expression, other: Expression, rounding_mode: str | None = None) -> Expression:
    if rounding_mode is not None:
        raise NotScalarError
    return _product(self, _inverse(other))


def _root(inner: Expression) -> Expression:
    """The square root; that of a square plus a constant is as steep as the length of a vector."""
    match inner:
        case Times(left=value, right=other) if value is other:
            return Applied(RootOfSquare(0.0), value)
        case (
            Total(left=Times(left=value, right=other), right=Constant(number=shift))
            | Total(left=Constant(number=shift), right=Times(left=value, right=other))
        ) if value is other and shift > 0:
            return Applied(RootOfSquare(shift), value)
    return Applied(Power(0.5), inner)


def _power(base: Expression, exponent: Expression) -> Expression:
    match exponent:
        case Constant(number=0.5):
            return _root(base)
        case Constant(number=number) if number < 0:
            return Inverse(_power(base, Constant(-number)))
        case Constant(number=number) if number in range(1, LARGEST_POWER + 1):
            return reduce(Times, [base] * int(number))
    raise NotScalarError


def _sign(inner: Expression) -> Expression:
    """1, 0 at 0 alone, and -1."""
    zero, one = Constant(0.0), Constant(1.0)
    return chosen(compared(inner, zero, True), one, chosen(compared(inner, zero, False), zero, _scaled(-1.0, one)))


def _extremum(left: Expression, right: Expression, largest: bool) -> Expression:
    if isinstance(left, Constant):
        left, right = right, left
    if isinstance(right, Constant):
        return Applied(Clamp(right.number, math.inf) if largest else Clamp(-math.inf, right.number), left)
    # max(a, b) = b + max(a - b, 0)
    return Total(right, _extremum(Total(left, _scaled(-1.0, right)), Constant(0.0), largest))


# What each operation makes of its arguments, under their ATen names.
READERS: dict[str, Callable[..., Expression]] = {
    "add": lambda self, other, alpha=None: _sum(self, other, alpha, 1.0),
    **dict.fromkeys(("sub", "subtract"), lambda self, other, alpha=None: _sum(self, other, alpha, -1.0)),
    "rsub": lambda self, other, alpha=None: _sum(other, self, alpha, -1.0),
    **dict.fromkeys(("mul", "multiply"), lambda self, other: _product(self, other)),
    **dict.fromkeys(("div", "divide", "true_divide"), _quotient),
    **dict.fromkeys(("neg", "negative"), lambda self: _scaled(-1.0, self)),
    "pow": lambda self, exponent: _power(self, exponent),
    "square": lambda self: Times(self, self),
    "reciprocal": lambda self: _inverse(self),
    "sqrt": lambda self: _root(self),
    "rsqrt": lambda self: Inverse(_root(self)),
    "log": lambda self: _log(self),
    "log1p": lambda self: _log(Total(Constant(1.0), self)),
    "exp": lambda self: Applied(Exp(), self),
    "expm1": lambda self: Total(Applied(Exp(), self), Constant(-1.0)),
    "where": lambda condition, self, other: chosen(condition, self, other),
    "masked_fill": lambda self, mask, value: chosen(mask, value, self),
    **dict.fromkeys(("sign", "sgn"), lambda self: _sign(self)),
    **dict.fromkeys(("maximum", "fmax"), lambda self, other: _extremum(self, other, True)),
    **dict.fromkeys(("minimum", "fmin"), lambda self, other: _extremum(self, other, False)),
}
CONDITIONS: dict[str, Callable[..., Expression]] = {
    **dict.fromkeys(("gt", "greater"), lambda self, other: compared(self, other, True)),
    **dict.fromkeys(("ge", "greater_equal"), lambda self, other: compared(self, other, False)),
    **dict.fromkeys(("lt", "less"), lambda self, other: compared(other, self, True)),
    **dict.fromkeys(("le", "less_equal"), lambda self, other: compared(other, self, False)),
    "logical_not": lambda self: chosen(self, Constant(0.0), Constant(1.0)),
}
READERS |= CONDITIONS
# Comparisons, and whether the first argument is the larger one.
ORDERS = dict.fromkeys(("gt", "greater", "ge", "greater_equal"), True) | dict.fromkeys(
    ("lt", "less", "le", "less_equal"), False
)
# Operations that act on every coordinate separately.
SCALAR = frozenset({*READERS, *ACTIVATIONS, *SAME})


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


@completion("where")
def chosen_extremum(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | None:
    """The larger or the smaller of two values, chosen by comparing them."""
    condition, above, below = origin.args
    if not isinstance(condition, fx.Node) or name_of(condition) not in ORDERS or {*condition.args} != {above, below}:
        return None
    call = call_of(origin, values, captured)
    if not isinstance(call["self"], Node) or not isinstance(call["other"], Node):
        return None
    largest = ORDERS[name_of(condition)] == (condition.args[0] is above)
    sides = [call.expanded(call[name]) for name in ("self", "other")]
    return call.make(Merge("maximum" if largest else "minimum"), *sides)


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
