"""The network on images in [0, 1]^n: forward interval arithmetic, slopes of activations, products of two values.

For x and y in the domain every value of the network lies in its box, so the difference quotients of an activation lie
within its slopes on the box, and a product of two values f and g satisfies
    |f(x) g(x) - f(y) g(y)| <= sup |f| |g(x) - g(y)| + sup |g| |f(x) - f(y)|,
in l2 and in linf, with suprema over all coordinates. The domain is convex and an adversary is confined to it, so a
radius from such a bound holds for the part of the ball within [0, 1]^n.
"""

import math
from functools import reduce

import torch

from robustres.certify.graph.added import ROUNDINGS, Added
from robustres.certify.graph.capture import Captured, device_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Product, Source
from robustres.certify.maps.interval import Interval, affine_interval, everything

# Every box is wider than the exact values require by this much; if rounding errors may be larger, nothing is certified.
BOX_SLACK = 1e-8


def on_unit_domain(network: Node, captured: Captured) -> Node:
    """The network as captured, with the slopes of activations on the boxes and the largest factors of products."""
    order = network.ordered()
    added = Added(captured, order)
    boxes: dict[Node, Interval] = {}
    made: dict[Node, Node] = {}
    with torch.no_grad():
        for node in order:
            inputs = [boxes[parent] for parent in node.inputs]
            piece = node.piece
            if isinstance(piece, Elementwise):
                low, high = piece.function.slopes_on(inputs[0].low, inputs[0].high)
                each = low.expand(1, *node.shape)[0], high.expand(1, *node.shape)[0]
                piece = Elementwise(piece.function, (float(low.min()), float(high.max())), each)
            if isinstance(piece, Product):
                first, second = (float(box.largest().max()) for box in inputs)
                piece = Product((first, second))
            boxes[node] = _box(node, inputs, added)
            made[node] = Node(piece, tuple(made[parent] for parent in node.inputs), node.shape, node.path, node.origin)
    return made[network]


def _box(node: Node, inputs: list[Interval], added: Added) -> Interval:
    """The box of the node's value for inputs in their boxes, widened for computed values, which are this close to the
    exact ones; unbounded if no box is known."""
    match node.piece:
        case Source():
            like = torch.zeros(1, *node.shape, dtype=torch.float64, device=device_of(added.captured.module))
            return Interval(like, torch.ones_like(like))
        case Linear():
            found = _affine(node, inputs[0], added)
        case Elementwise():
            found = Interval(*node.piece.function.values_on(inputs[0].low, inputs[0].high))
        case Merge(kind="sum"):
            found = reduce(Interval.__add__, inputs)
        case Merge(kind="concatenation", axis=int(axis)):
            found = Interval(
                *(torch.cat(ends, dim=axis + 1) for ends in ([b.low for b in inputs], [b.high for b in inputs]))
            )
        case Merge(kind=kind):
            larger = torch.maximum if kind == "maximum" else torch.minimum
            found = Interval(larger(inputs[0].low, inputs[1].low), larger(inputs[0].high, inputs[1].high))
        case Product():
            found = inputs[0] * inputs[1]
        case Opaque():
            found = Interval(*node.piece.values_on(inputs[0].low, inputs[0].high))
        case _:
            raise TypeError(f"no box is known for a {type(node.piece).__name__}")
    low, high = found.low.nan_to_num(-math.inf, math.inf), found.high.nan_to_num(math.inf, math.inf)
    return Interval(low - BOX_SLACK, high + BOX_SLACK)


def _affine(node: Node, box: Interval, added: Added) -> Interval:
    assert isinstance(node.piece, Linear)
    known = added.by(node)
    if known is None or not bool(torch.isfinite(torch.stack((box.low, box.high))).all()):
        return everything(box.low.new_zeros(1, *node.shape))
    map_, absolute = node.piece.map, node.piece.map.absolute()
    roundings = map_.roundings + absolute.roundings + ROUNDINGS
    return affine_interval(map_, absolute, *known, roundings, box.low, box.high)[0]
