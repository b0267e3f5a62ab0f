"""The rules of the operations, by ATen name, which the modules `rules_...` register."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

if TYPE_CHECKING:  # these need the graph, whose capture needs the names of the rules
    from robustres.certify.graph.call import Call, Parts
    from robustres.certify.graph.capture import Captured
    from robustres.certify.graph.network import Node

# Operations that have no rule: the reason why there is no bound, and the remedy.
PRODUCT = "of two values that both depend on the input, which has no global bound (attention is such a product)"
COMPARES = "whose answer is yes or no, so that what is chosen by it jumps or has no rule"
GROWS = "whose slope grows without limit, so it has no global bound"
STEEP = "whose slope grows without limit at the ends of its domain"
JUMPS = "which jumps"
POLE = "which has no bound near 0"
REASONS: dict[str, str] = {
    "scaled_dot_product_attention": PRODUCT,
    **dict.fromkeys(("gru", "lstm"), "whose gates multiply two values that both depend on the input"),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or"), COMPARES),
    **dict.fromkeys(("pow", "square", "float_power", "exp", "expm1", "sinh", "cosh", "i0", "special_i1"), GROWS),
    **dict.fromkeys(("sqrt", "rsqrt", "log", "reciprocal"), POLE),
    "log1p": "which has no bound near -1",
    **dict.fromkeys(("lgamma", "digamma", "polygamma", "tan", "special_zeta"), "which has poles"),
    **dict.fromkeys(("asin", "acos", "acosh", "atanh", "erfinv", "special_ndtri", "logit"), STEEP),
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "frac", "fmod", "remainder", "floor_divide"), JUMPS),
    **dict.fromkeys(("sign", "sgn", "heaviside", "argmax", "argmin", "argsort", "mode", "bucketize"), JUMPS),
    **dict.fromkeys(("searchsorted", "histc", "atan2", "angle", "renorm", "max_unpool2d", "signbit"), JUMPS),
}

Rule = Callable[["Call"], "Node | Parts | Tensor"]
RULES: dict[str, Rule] = {}

# What an operation may be where its rule does not cover it, for example the last part of a scalar function that is
# written out in several operations; None if it is not that. Those of an operation are tried in the order given.
Completion = Callable[[fx.Node, Mapping[fx.Node, Any], "Captured"], "Node | None"]
COMPLETIONS: dict[str, list[Completion]] = {}


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations, named with or without their overload: "relu", "add.Tensor"."""

    def register(function: Rule) -> Rule:
        for operation in operations:
            if operation in RULES:
                raise ValueError(f"{operation} has a rule already")
            RULES[operation] = function
        return function

    return register


def completion(*operations: str) -> Callable[[Completion], Completion]:
    """Register a completion for ATen operations, named without their overload."""

    def register(function: Completion) -> Completion:
        for operation in operations:
            COMPLETIONS.setdefault(operation, []).append(function)
        return function

    return register


def is_known(operation: str) -> bool:
    """Whether an operation, named with or without its overload, has a rule or a reason why it has none."""
    return any(operation in names for names in (RULES, COMPLETIONS, REASONS))
