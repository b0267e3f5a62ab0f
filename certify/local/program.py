"""From a captured network to the steps that bounds are propagated through, with the constants that it adds.

The network of pieces knows no constants, since a Lipschitz constant needs none. Here each operation's constant is read
off the captured graph: it is the operation's answer where everything that depends on the image is 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from robustres.certify.graph import network
from robustres.certify.graph.added import ROUNDINGS, Added
from robustres.certify.graph.capture import BATCH, Captured, device_of, operation_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Source, forward_roundings
from robustres.certify.graph.simplify import simplified
from robustres.certify.graph.single_function import AGREEMENT, close
from robustres.certify.local.compositions import Steps, composed
from robustres.certify.local.relaxations import checked
from robustres.certify.local.steps import (
    Activation,
    Affine,
    Concatenation,
    Input,
    Known,
    Product,
    Step,
    Total,
    affine,
    converted,
    sources_of,
)
from robustres.certify.maps import folding
from robustres.certify.maps.activation import PiecewiseLinear
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.curves import Square
from robustres.certify.maps.lengths import Normalisation
from robustres.certify.maps.linear_map import Identity, Scaled
from robustres.certify.maps.nonlinear import Extremum, MaxPool, Sort
from robustres.certify.maps.piecewise_linear import Relu
from robustres.errors import ModelError, PrecisionError, Refusal, UnsupportedOperationError

BLOCK = 256  # columns of a matrix of products at a time


@dataclass(frozen=True, eq=False)
class Program:
    """steps: each after those that it reads; the first is the input, the last gives the logits (a vector).

    order: the same network simplified, as the inequalities of all layers together (`quadratic`) want it, in float64;
    empty where these do not cover it. dtype: that bounds are computed in. runs: the arithmetic of the network that they
    are about; None if it is exact.
    """

    steps: tuple[Step, ...]
    device: torch.device
    order: tuple[Node, ...]
    dtype: torch.dtype = torch.float64
    runs: torch.dtype | None = None

    def to(self, dtype: torch.dtype) -> "Program":
        """The same in another precision: good for a search, not for a proof."""
        return replace(self, steps=tuple(converted(step, dtype) for step in self.steps), dtype=dtype)

    @property
    def activations(self) -> list[int]:
        """The places of the scalar functions, in order."""
        return [place for place, step in enumerate(self.steps) if isinstance(step, Activation)]

    @cached_property
    def scalar_nodes(self) -> dict[Node, int]:
        """By elementwise node of `order`, the place of the same scalar function among the steps."""
        places = {
            step.origin: place
            for place, step in enumerate(self.steps)
            if isinstance(step, Activation) and step.origin is not None
        }
        return {
            node: places[node.origin]
            for node in self.order
            if isinstance(node.piece, Elementwise) and node.origin in places
        }

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
                case Product():
                    values.append(values[step.sources[0]] * values[step.sources[1]])
                case Known():
                    values.append(values[step.source])
        return values

    @cached_property
    def readers(self) -> dict[int, list[Activation | Product]]:
        """By place, the activations and products whose relaxations tighter bounds of its values would tighten.

        Copies are bounded where they were copied from, unless kinks may differ there. The answer of an activation is
        bounded by its argument.
        """
        found: dict[int, list[Activation | Product]] = {}
        for step in self.steps:
            if not isinstance(step, Activation | Product):
                continue
            kinked = isinstance(step, Activation) and isinstance(step.function, PiecewiseLinear)
            for place in sources_of(step):
                while copies(before := self.steps[place]) and not kinked:
                    (place,) = sources_of(before)
                if isinstance(step, Activation) or not isinstance(before, Activation):
                    found.setdefault(place, []).append(step)
        return found

    @cached_property
    def first_columns(self) -> Tensor:
        """(n, *shape) the change of step 1, an affine map of the image, by each of the n coordinates of the image."""
        first = self.steps[1]
        assert isinstance(first, Affine)
        shape = self.steps[0].shape
        return first.map(torch.eye(math.prod(shape), dtype=self.dtype, device=self.device).reshape(-1, *shape))

    @cached_property
    def first_products(self) -> Tensor:
        """(m, m) of all pairs of these changes' m columns, the lower half, in float64."""
        return lower_products(self.first_columns.flatten(1).to(torch.float64))

    def ancestors(self, place: int) -> set[int]:
        """The steps that the step at `place` depends on, and itself."""
        found = {place}
        for earlier in range(place, -1, -1):
            if earlier in found:
                found.update(sources_of(self.steps[earlier]))
        return found


def copies(step: Step) -> TypeGuard[Affine]:
    """Whether the step only copies values."""
    return isinstance(step, Affine) and isinstance(step.map, Selection) and not bool(step.constant.any())


def lower_products(columns: Tensor) -> Tensor:
    """(m, m) the lower half of the products of all pairs of columns (n, m)."""
    count = columns.shape[1]
    found = columns.new_zeros(count, count)
    for at in range(0, count, BLOCK):
        found[at:, at : at + BLOCK] = columns[:, at:].T @ columns[:, at : at + BLOCK]
    return found


def program(captured: Captured, output: Node, *, runs: torch.dtype | None = None) -> Program:
    """The steps of a captured network. runs: as in `Program`; one step for each operation where it is not None.

    Raises UnsupportedOperationError naming every operation that has no relaxation.
    """
    if runs is not None and captured.defined:
        raise PrecisionError(f"no bound is known on the rounding of {', '.join(captured.defined)} in {runs}")
    builder = _Builder(captured, output, exact=runs is None)
    with torch.no_grad():
        steps = builder.run()
        order = _inequalities(output) if runs is None else ()
        made = Program(tuple(steps), device_of(captured.module), order, runs=runs)
        _compare(made, captured)
    return made


def _inequalities(output: Node) -> tuple[Node, ...]:
    """The simplified network, if every piece has an inequality that is worth anything near an image."""
    order = tuple(simplified(output).ordered())
    covered = not any(isinstance(node.piece, network.Product | Normalisation) for node in order)
    finite = all(math.isfinite(node.piece.constant) for node in order if isinstance(node.piece, Elementwise))
    return order if covered and finite else ()


class _Builder:
    def __init__(self, captured: Captured, output: Node, *, exact: bool) -> None:
        self.captured, self.exact = captured, exact
        self.order = output.ordered()
        self.consumers = Counter(parent for node in self.order for parent in node.inputs)
        self.added = Added(captured, self.order)
        self.place: dict[Node, int] = {}
        self.excess: dict[tuple[int, int], int] = {}  # by two places, that of the positive part of their difference
        self.steps = Steps(device_of(captured.module))
        self.refused: dict[Refusal, None] = {}

    def run(self) -> list[Step]:
        for node in self.order:
            try:
                self.place[node] = self._placed(node)
            except NotImplementedError as error:
                self.refused[Refusal(node.path, f"{operation_of(node.origin)} {error}".strip())] = None
                self.place[node] = self.steps.put(Input(node.shape))
        if self.refused:
            raise UnsupportedOperationError(tuple(self.refused))
        output = self.steps[self.place[self.order[-1]]]
        if len(output.shape) != 1:
            raise ModelError(f"local certificates need one vector of logits per image, got the shape {output.shape}")
        return _without_unused(self.steps, self.place[self.order[-1]])

    def _placed(self, node: Node) -> int:
        piece, sources = node.piece, tuple(self.place[parent] for parent in node.inputs)
        match piece:
            case Source():
                return self.steps.put(Input(node.shape))
            case Linear():
                return self._affine(node, piece, sources[0])
            case Elementwise():
                return self.steps.put(Activation(sources[0], checked(piece.function), node.shape, node.origin))
            case Merge(kind="sum"):
                return self.steps.put(Total(sources, node.shape))
            case Merge(kind="concatenation", axis=int(axis)):
                sizes = tuple(parent.shape[axis] for parent in node.inputs)
                return self.steps.put(Concatenation(sources, axis, sizes, node.shape))
            case Merge(kind="maximum" | "minimum"):
                return self._larger(sources[0], sources[1], 1.0 if piece.kind == "maximum" else -1.0)
            case network.Product():
                first, second = sources
                if first == second:
                    return self.steps.applied(first, Square())
                return self.steps.put(Product((first, second), node.shape))
            case Opaque() if not self.exact and not isinstance(piece, Sort | Extremum | MaxPool):
                raise NotImplementedError("has no bound on its rounding")
            case Opaque():
                return composed(piece, sources[0], self.steps)
            case Merge():
                raise NotImplementedError("has no relaxation")

    def _larger(self, first: int, second: int, sign: float) -> int:
        """max(a, b) = a + relu(b - a) and min(a, b) = b - relu(b - a), with one ReLU for both of a pair."""
        first, second = sorted((first, second))
        steps = self.steps
        if (first, second) not in self.excess:
            self.excess[first, second] = steps.applied(steps.difference(second, first), Relu())
        kept, shape = first if sign > 0 else second, steps.shape(first)
        return steps.put(Total((kept, steps.plain(self.excess[first, second], Scaled(sign, Identity(shape)))), shape))

    def _affine(self, node: Node, piece: Linear, source: int) -> int:
        known = self.added.by(node)
        if known is None:
            raise NotImplementedError("adds a constant between operations that are not linear")
        (constant, size), before, map_, roundings = known, self.steps[source], piece.map, ROUNDINGS
        if self.exact and isinstance(before, Affine) and self.consumers[node.inputs[0]] == 1:
            constant = piece.map(before.constant[None])[0] + constant
            size = piece.map.absolute()(before.constant_size[None])[0] + size
            roundings += before.roundings + piece.map.roundings + 1
            source, map_ = before.source, folding.composed([before.map, piece.map])
        return self.steps.put(affine(source, map_, constant, size, roundings, forward=forward_roundings(node)))


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
            case Affine() | Activation() | Known():
                kept.append(replace(step, source=new[step.source]))
            case Product():
                kept.append(replace(step, sources=(new[step.sources[0]], new[step.sources[1]])))
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
        if not close(found, expected, AGREEMENT):
            raise ModelError(
                "the steps that bounds are propagated through do not answer as the model does; please report this model"
            )
