"""The network on images in [0, 1]^n: forward interval arithmetic, slopes of activations, products of two values.

For x and y in the domain every value of the network lies in its box, so the difference quotients of an activation lie
within its slopes on the box, and a product of two values f and g satisfies
    |f(x) g(x) - f(y) g(y)| <= sup |f| |g(x) - g(y)| + sup |g| |f(x) - f(y)|,
in l2 and in linf, with suprema over all coordinates. The domain is convex and an adversary is confined to it, so a
radius from such a bound holds for the part of the ball within [0, 1]^n.
"""

import math

import torch
from torch import Tensor, fx

from robustres.certify.graph.capture import BATCH, Captured, device_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Product, Source
from robustres.certify.maps.rounding import ALGORITHM_FACTOR
from robustres.numerics import gamma

Box = tuple[Tensor, Tensor]
# Every box is wider than the exact values require by this much; if rounding errors may be larger, nothing is certified.
BOX_SLACK = 1e-8


def on_unit_domain(network: Node, captured: Captured) -> Node:
    """The network as captured, with the slopes of activations on the boxes and the largest factors of products."""
    order = network.ordered()
    middle = _middle(order, captured)
    boxes: dict[Node, Box] = {}
    made: dict[Node, Node] = {}
    for node in order:
        inputs = [boxes[parent] for parent in node.inputs]
        piece = node.piece
        if isinstance(piece, Elementwise):
            low, high = piece.function.slopes_on(*inputs[0])
            each = low.expand(1, *node.shape)[0], high.expand(1, *node.shape)[0]
            piece = Elementwise(piece.function, (float(low.min()), float(high.max())), each)
        if isinstance(piece, Product):
            first, second = (float(torch.maximum(low.abs(), high.abs()).max()) for low, high in inputs)
            piece = Product((first, second))
        boxes[node] = _widened(_box(node, inputs, middle)) if node.inputs else _box(node, inputs, middle)
        made[node] = Node(piece, tuple(made[parent] for parent in node.inputs), node.shape, node.path, node.origin)
    return made[network]


def _widened(box: Box) -> Box:
    """The box widened for computed values, which are this close to the exact ones; unbounded if no box is known."""
    return box[0].nan_to_num(-math.inf, math.inf) - BOX_SLACK, box[1].nan_to_num(math.inf, math.inf) + BOX_SLACK


def _middle(order: list[Node], captured: Captured) -> dict[Node, Tensor]:
    """(1, *shape): the computed value of every node at the image with all pixels 0.5."""
    seen: dict[fx.Node, Tensor] = {}
    shape = (BATCH, *captured.source.meta["val"].shape[1:])
    image = torch.full(shape, 0.5, dtype=torch.float64, device=device_of(captured.module))

    def observe(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            seen[node] = value[:1]

    with torch.no_grad():
        captured.run({captured.source: image}, captured.output, observe=observe)
    seen[captured.source] = image[:1]
    inner = {parent for node in order for parent in node.inputs if parent.origin is node.origin}
    values: dict[Node, Tensor] = {}
    for node in order:
        piece = node.piece
        if node not in inner:
            values[node] = seen[node.origin].reshape(1, *node.shape)
        elif not all(parent in values for parent in node.inputs):
            continue
        elif isinstance(piece, Linear) and piece.shift == 0:
            values[node] = piece.map(values[node.inputs[0]])
        elif isinstance(piece, Elementwise):
            values[node] = piece.function(values[node.inputs[0]])
        elif isinstance(piece, Product):
            values[node] = values[node.inputs[0]] * values[node.inputs[1]]
        elif isinstance(piece, Merge):
            values[node] = _merged([values[parent] for parent in node.inputs], piece)
    return values


def _merged(values: list[Tensor], piece: Merge) -> Tensor:
    match piece.kind:
        case "sum":
            return sum(values[1:], values[0])
        case "concatenation":
            assert piece.axis is not None
            return torch.cat(values, dim=piece.axis + 1)
        case "maximum":
            return torch.maximum(*values)
        case "minimum":
            return torch.minimum(*values)


def _box(node: Node, inputs: list[Box], middle: dict[Node, Tensor]) -> Box:
    """The box of the node's value, for inputs in their boxes."""
    match node.piece:
        case Source():
            image = middle[node]
            return torch.zeros_like(image), torch.ones_like(image)
        case Linear():
            return _affine(node, inputs[0], middle)
        case Elementwise():
            return node.piece.function.values_on(*inputs[0])
        case Merge():
            low, high = (_merged([box[end] for box in inputs], node.piece) for end in (0, 1))
            slack = gamma(len(inputs) + 2) * sum(torch.maximum(box[0].abs(), box[1].abs()).max() for box in inputs)
            return low - slack, high + slack
        case Product():
            ends = torch.stack([left * right for left in inputs[0] for right in inputs[1]])
            slack = gamma(4) * ends.abs().amax(0)
            return ends.amin(0).nan_to_num(-math.inf) - slack, ends.amax(0).nan_to_num(math.inf) + slack
        case Opaque():
            return node.piece.values_on(*inputs[0])
    raise TypeError(f"no box is known for a {type(node.piece).__name__}")


def _affine(node: Node, box: Box, middle: dict[Node, Tensor]) -> Box:
    """A (c - m) + value at m, plus and minus |A| times half the width, where m is the computed centre of the input.

    The computed value at m has only the rounding errors of this operation, relative to |A| |m| and the constant part.
    """
    assert isinstance(node.piece, Linear)
    unbounded = torch.full((1, *node.shape), math.inf, dtype=torch.float64, device=box[0].device)
    if node not in middle or node.inputs[0] not in middle or not bool(torch.isfinite(torch.stack(box)).all()):
        return -unbounded, unbounded
    map_, before, after = node.piece.map, middle[node.inputs[0]], middle[node]
    absolute = map_.absolute()
    centre, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2 * (1 + 2**-50)
    steps = ALGORITHM_FACTOR * (map_.roundings + map_.forward_roundings + absolute.roundings) + 64
    value = map_(centre - before) + after
    spread = absolute(half) * (1 + gamma(steps))
    size = absolute((centre - before).abs() + 2 * before.abs() + half) + after.abs()
    slack = spread + 2 * gamma(steps) * size
    return value - slack, value + slack
