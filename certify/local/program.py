"""From a captured network to the steps that bounds are propagated through, with the constants that it adds.

The network of pieces knows no constants, since a Lipschitz constant needs none. Here each operation's constant is read
off the captured graph: it is the operation's answer where everything that depends on the image is 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.graph.capture import BATCH, Captured, device_of, operation_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Product, Source
from robustres.certify.graph.simplify import simplified
from robustres.certify.local.comparisons import comparisons
from robustres.certify.local.relaxations import checked
from robustres.certify.local.steps import (
    Activation,
    Affine,
    Concatenation,
    Input,
    Step,
    Total,
    affine,
    converted,
    sources_of,
)
from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import Identity, LinearMap, Scaled
from robustres.certify.maps.nonlinear import Extremum, MaxMin, MaxPool, Opaque, Sort
from robustres.certify.maps.piecewise_linear import Relu
from robustres.errors import ModelError, Refusal, UnsupportedOperationError

# Roundings of an operation that adds a constant, beyond those of its map: batch normalisation has six.
OWN = 8


@dataclass(frozen=True, eq=False)
class Program:
    """steps: each after those that it reads; the first is the input, the last gives the logits (a vector).

    order: the same network simplified, as the inequalities of all layers together (`quadratic`) want it, in float64.
    """

    steps: tuple[Step, ...]
    device: torch.device
    order: tuple[Node, ...]
    dtype: torch.dtype = torch.float64

    def to(self, dtype: torch.dtype) -> "Program":
        """The same in another precision: good for a search, not for a proof."""
        return replace(self, steps=tuple(converted(step, dtype) for step in self.steps), dtype=dtype)

    @property
    def activations(self) -> list[int]:
        """The places of the scalar functions, in order."""
        return [place for place, step in enumerate(self.steps) if isinstance(step, Activation)]

    def values(self, x: Tensor) -> list[Tensor]:
        """The value of every step at images (N, *shape)."""
        values: list[Tensor] = []
        for step in self.steps:
            match step:
                case Input():
                    values.append(x)
                case Affine():
                    values.append(step.map(values[step.source]) + step.constant)
                case Activation():
                    values.append(step.function(values[step.source].to(torch.float64)).to(x.dtype))
                case Total():
                    values.append(sum((values[place] for place in step.sources[1:]), values[step.sources[0]]))
                case Concatenation():
                    values.append(torch.cat([values[place] for place in step.sources], dim=step.axis + 1))
        return values

    def ancestors(self, place: int) -> set[int]:
        """The steps that the step at `place` depends on, and itself."""
        found = {place}
        for earlier in range(place, -1, -1):
            if earlier in found:
                found.update(sources_of(self.steps[earlier]))
        return found


def program(captured: Captured, network: Node) -> Program:
    """The steps of a captured network.

    Raises UnsupportedOperationError naming every operation that has no relaxation.
    """
    builder = _Builder(captured, network)
    with torch.no_grad():
        steps = builder.run()
        made = Program(tuple(steps), device_of(captured.module), tuple(simplified(network).ordered()))
        _compare(made, captured)
    return made


class _Builder:
    def __init__(self, captured: Captured, network: Node) -> None:
        self.captured = captured
        self.order = network.ordered()
        self.consumers = Counter(parent for node in self.order for parent in node.inputs)
        self.last = {node.origin: node for node in self.order}  # of several nodes of one operation, the outermost
        self.place: dict[Node, int] = {}
        self.steps: list[Step] = []
        self.refused: dict[Refusal, None] = {}

    def run(self) -> list[Step]:
        for node in self.order:
            try:
                self.place[node] = self._placed(node)
            except NotImplementedError as error:
                self.refused[Refusal(node.path, f"{operation_of(node.origin)} {error}".strip())] = None
                self.place[node] = self._put(Input(node.shape))
        if self.refused:
            raise UnsupportedOperationError(tuple(self.refused))
        output = self.steps[self.place[self.order[-1]]]
        if len(output.shape) != 1:
            raise ModelError(f"local certificates need one vector of logits per image, got the shape {output.shape}")
        return _without_unused(self.steps, self.place[self.order[-1]])

    def _put(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _placed(self, node: Node) -> int:
        piece, sources = node.piece, tuple(self.place[parent] for parent in node.inputs)
        match piece:
            case Source():
                return self._put(Input(node.shape))
            case Linear():
                return self._affine(node, piece, sources[0])
            case Elementwise():
                return self._put(Activation(sources[0], checked(piece.function), node.shape, node.origin))
            case Merge(kind="sum"):
                return self._put(Total(sources, node.shape))
            case Merge(kind="concatenation", axis=int(axis)):
                sizes = tuple(parent.shape[axis] for parent in node.inputs)
                return self._put(Concatenation(sources, axis, sizes, node.shape))
            case Merge(kind="maximum" | "minimum"):
                return self._larger(sources[0], sources[1], 1.0 if piece.kind == "maximum" else -1.0)
            case Sort() | Extremum() | MaxMin() | MaxPool():
                return self._sorted(piece, sources[0])
            case Merge() | Opaque() | Product():
                raise NotImplementedError("has no relaxation")

    def _larger(self, first: int, second: int, sign: float) -> int:
        """max(a, b) = a + relu(b - a), and min(a, b) = a - relu(a - b)."""
        shape = self.steps[first].shape
        opposite = self._plain(first, Scaled(-sign, Identity(shape)))
        gap = self._put(
            Total((opposite, second if sign > 0 else self._plain(second, Scaled(-1.0, Identity(shape)))), shape)
        )
        return self._put(
            Total((first, self._plain(self._put(Activation(gap, Relu(), shape)), Scaled(sign, Identity(shape)))), shape)
        )

    def _plain(self, source: int, map_: LinearMap) -> int:
        zero = torch.zeros(map_.out_shape, dtype=torch.float64, device=device_of(self.captured.module))
        return self._put(affine(source, map_, zero, zero, 0))

    def _sorted(self, piece: Sort | Extremum | MaxMin | MaxPool, source: int) -> int:
        """By comparators: of two places the first takes a + relu(b - a), the second b - relu(b - a)."""
        plan = comparisons(piece, self.steps[source].shape, device_of(self.captured.module))
        place = self._plain(source, plan.entry)
        for gap, spread in plan.rounds:
            ahead = self._put(Activation(self._plain(place, gap), Relu(), gap.out_shape))
            place = self._put(Total((place, self._plain(ahead, spread)), self.steps[place].shape))
        return self._plain(place, plan.exit)

    def _affine(self, node: Node, piece: Linear, source: int) -> int:
        constant, size = self._constant(node, piece)
        before, map_, roundings = self.steps[source], piece.map, OWN
        if isinstance(before, Affine) and self.consumers[node.inputs[0]] == 1:
            constant = piece.map(before.constant[None])[0] + constant
            size = piece.map.absolute()(before.constant_size[None])[0] + size
            roundings += before.roundings + piece.map.roundings + 1
            source, map_ = before.source, composed([before.map, piece.map])
        return self._put(affine(source, map_, constant, size, roundings))

    def _constant(self, node: Node, piece: Linear) -> tuple[Tensor, Tensor]:
        """What the node adds, and at or above the size of what that was computed from."""
        shape, device = node.shape, device_of(self.captured.module)
        if self.last[node.origin] is not node:  # a part of an operation; the whole of its constant is added at its end
            zero = torch.zeros(shape, dtype=torch.float64, device=device)
            return zero, zero
        parent = node.inputs[0]
        while parent.origin is node.origin:
            parent = parent.inputs[0]
        nothing = torch.zeros(BATCH, *parent.shape, dtype=torch.float64, device=device)
        answer = self.captured.run({parent.origin: nothing}, node.origin)[0]
        return answer.clone(), answer.abs() + piece.shift


def _without_unused(steps: Sequence[Step], output: int) -> list[Step]:
    """The steps that the output depends on, renumbered; the output is the last."""
    used = {0, output}
    for place in range(output, -1, -1):
        if place in used:
            used.update(sources_of(steps[place]))
    new = {old: place for place, old in enumerate(sorted(used))}
    kept: list[Step] = []
    for old in sorted(used):
        step = steps[old]
        match step:
            case Affine() | Activation():
                kept.append(replace(step, source=new[step.source]))
            case Total() | Concatenation():
                kept.append(replace(step, sources=tuple(new[source] for source in step.sources)))
            case Input():
                kept.append(step)
    return kept


def _compare(made: Program, captured: Captured) -> None:
    """Refuse steps that do not answer as the captured graph does."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, *made.steps[0].shape)
    for scale in (1.0, 3.0):
        x = scale * torch.rand(shape, dtype=torch.float64, generator=generator).to(made.device)
        expected, found = captured.run({captured.source: x}, captured.output), made.values(x)[-1]
        if not torch.allclose(found, expected, rtol=0, atol=1e-9 * (1 + float(expected.abs().max()))):
            raise ModelError(
                "the steps that bounds are propagated through do not answer as the model does; please report this model"
            )
