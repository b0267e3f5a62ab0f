"""Conversion of the captured graph to the network of linear maps and activations: one rule per ATen operation.

A rule takes a `Call` and returns the node of the operation, or of the first of its outputs. An operation without a
rule, or that its rule does not cover, is refused by name and location; all refusals of a network are listed at once. An
unknown operation is never assumed to have the constant 1.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from robustres.certify.graph.call import Call, Deferred, NotCoveredError, Parts, name_of, unbatched
from robustres.certify.graph.capture import BATCH, Captured, call, device_of, is_random, operation_of, path_of
from robustres.certify.graph.network import Node, Source
from robustres.certify.graph.registry import COMPLETIONS, POLE, REASONS, RULES, Rule
from robustres.certify.graph.tracing import first_line
from robustres.errors import Refusal

# Operations that make constants from the shape of a value alone.
SHAPE_ONLY = frozenset(
    {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
    | {"scalar_tensor", "eye", "arange", "full", "zeros", "ones"}
)
CASTS = frozenset({"to", "_to_copy", "type_as"})
# Operations that draw random numbers with dropout only, in which case their rules refuse them.
INERT = frozenset(
    {"rrelu", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"}
    | {"scaled_dot_product_attention"}
)


def build_network(captured: Captured) -> tuple[Node | None, tuple[Refusal, ...]]:
    """The output node of the network, or None and all refusals."""
    source = captured.source
    values: dict[fx.Node, Any] = {**captured.constants}
    values[source] = Node(Source(), (), unbatched(source.meta["val"]), "", source)
    refused: dict[Refusal, None] = {}
    for origin in captured.nodes:
        if not is_scalar(origin):
            for parent in origin.all_input_nodes:
                waiting = values.get(parent)
                if isinstance(waiting, Deferred):  # nothing completed it
                    refused[_refusal(waiting.reason.at or parent, waiting.reason)] = None
                    values[parent] = _unknown(parent)
        if any(values[parent] is None for parent in origin.all_input_nodes if parent not in captured.constants):
            values[origin] = None  # depends on a refused operation whose output has no known form
            if origin.target is not operator.getitem and _rule_of(origin) is None:
                refused[_refusal(origin, NotCoveredError(_reason(origin)))] = None
            continue
        try:
            values[origin] = _applied(origin, values, captured)
        except NotCoveredError as reason:
            refused[_refusal(reason.at or origin, reason)] = None
            values[origin] = _unknown(origin)
    output = values.get(captured.output)
    if isinstance(output, Deferred):
        refused[_refusal(output.reason.at or captured.output, output.reason)] = None
    if isinstance(output, Node) and not refused:
        return output, ()
    return None, tuple(refused) or (Refusal("", "an answer that does not depend on the input"),)


def _applied(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Any:
    """The result of the operation for known values: a node, several nodes, or a constant if the value is empty."""
    value = origin.meta.get("val")
    if isinstance(value, Tensor) and not value.numel():
        return torch.zeros(tuple(value.shape), dtype=value.dtype, device=device_of(captured.module))
    if all(isinstance(values.get(parent), Tensor) for parent in origin.all_input_nodes) and not is_random(origin):
        return call(origin, values, captured.module, captured.own)  # empty values and constants give a constant
    _require_float64(origin, list(value) if isinstance(value, list | tuple) else [value])
    try:
        made = _made_or_deferred(origin, values, captured)
    except NotCoveredError:
        raise
    except Exception as error:  # any error of torch or Python inside a rule is a refusal, never a bound
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NotCoveredError(f"in a form that its rule does not cover ({reason})") from error
    if isinstance(made, Node) and made.shape != tuple(origin.meta["val"].shape[1:]):
        raise NotCoveredError(f"whose rule gave the shape {made.shape}: please report this model")
    return made


def _require_float64(origin: fx.Node, values: Sequence[Any]) -> None:
    """Refuse rounding: narrower types, and integers or booleans computed from a value that depends on the input.

    Indices returned beside a value (those of a maximum) are integers, but no rule covers them. The 0 and 1 of a
    condition are exact in every type.
    """
    if is_cast_condition(origin) or name_of(origin) in SHAPE_ONLY:
        return
    first = [] if _rule_of(origin) is None else values[:1]
    for part in values:
        if (
            isinstance(part, Tensor)
            and part.dtype != torch.float64
            and (part.is_floating_point() or any(part is one for one in first))
        ):
            raise NotCoveredError("with complex numbers" if part.is_complex() else f"in {part.dtype}, which rounds")


def is_cast_condition(origin: fx.Node) -> bool:
    """Whether this is a condition as a number: `(x > 0).float()`."""
    given = [parent.meta["val"] for parent in origin.all_input_nodes]
    return name_of(origin) in CASTS and getattr(given[0], "dtype", None) == torch.bool


def is_scalar(origin: fx.Node) -> bool:
    """Whether the operation may be part of an activation that is written in several operations."""
    return name_of(origin) in COMPLETIONS


def _made_or_deferred(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Any:
    """The result of the operation's rule; without a rule, it may complete an activation or become part of one."""
    waiting = [value for parent in origin.all_input_nodes if isinstance(value := values.get(parent), Deferred)]
    try:
        if not waiting:
            return _made(origin, values, captured)
        reason = waiting[0].reason
    except NotCoveredError as error:
        if not is_scalar(origin):
            raise
        reason = error
        reason.at = reason.at or origin
    for complete in COMPLETIONS[name_of(origin)]:
        node = complete(origin, values, captured)
        if node is not None:
            return node
    return Deferred(reason)


def _made(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> "Node | Parts | Tensor":
    if origin.target is operator.getitem:
        of, place = origin.args
        parts = values[of] if isinstance(of, fx.Node) else None
        if not isinstance(parts, Parts) or not isinstance(place, int) or place >= len(parts.nodes):
            raise NotCoveredError("of an output that is not covered")
        return _standing_at(origin, parts.nodes[place])
    found = _rule_of(origin)
    if found is None or not isinstance(origin.target, torch._ops.OpOverload):
        raise NotCoveredError(_reason(origin))
    made = found(call_of(origin, values, captured))
    several = isinstance(origin.meta["val"], list | tuple)
    return Parts((made,)) if several and isinstance(made, Node) else made


def _standing_at(output: fx.Node, node: Node) -> Node:
    """A node of an operation with several outputs, with all nodes created before it, attributed to the given output."""
    inputs = (_standing_at(output, part) if part.origin is node.origin else part for part in node.inputs)
    return replace(node, origin=output, inputs=tuple(inputs))


def call_of(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Call:
    """The operation with its arguments by name, nodes of the graph replaced by their values."""
    assert isinstance(origin.target, torch._ops.OpOverload)
    args, kwargs = fx.node.map_arg((origin.args, origin.kwargs), lambda argument: values[argument])
    schema = origin.target._schema.arguments
    arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    arguments.update(zip((argument.name for argument in schema), args, strict=False))
    arguments.update(kwargs)
    return Call(origin, arguments, captured)


def _rule_of(origin: fx.Node) -> Rule | None:
    if not isinstance(origin.target, torch._ops.OpOverload):
        return None
    name = str(origin.target).removeprefix("aten.")
    if is_random(origin) and name_of(origin) not in INERT:
        return None
    return RULES.get(name) or RULES.get(name.rsplit(".", 1)[0])


def _reason(origin: fx.Node) -> str:
    exponent = origin.args[1] if name_of(origin) == "pow" else None
    if isinstance(exponent, float | int) and exponent < 1:
        return POLE
    return REASONS.get(name_of(origin), "which draws random numbers" if is_random(origin) else "")


def _refusal(origin: fx.Node, reason: NotCoveredError) -> Refusal:
    whole = origin.meta.get("defined")
    within = "" if whole is None else f"(in the definition of {str(whole).rsplit('.', 1)[0]})"
    return Refusal(path_of(origin), " ".join(f"{operation_of(origin)} {reason} {within}".split()))


def _unknown(origin: fx.Node) -> Node | Parts | None:
    """A source of the right shape in place of a refused operation, so that everything after it is checked too."""
    value: Any = origin.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, Tensor) and part.ndim and part.shape[0] == BATCH for part in parts):
        return None
    shapes = [tuple(part.shape[1:]) for part in parts]
    nodes = tuple(Node(Source(), (), shape, path_of(origin), origin) for shape in shapes)
    return nodes[0] if isinstance(value, Tensor) else Parts(nodes)
