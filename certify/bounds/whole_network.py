"""A whole network in one inequality, dense, with a multiplier for every neuron (section 3.4 of the mathematics).

The difference of two inputs and the increments of all hidden units determine the difference of the logits linearly, in
any acyclic network of linear maps, sums, concatenations, elementwise activations and sorts: `incremental_form` with
the hidden layers of the whole network. It is tighter than the product of the blocks, and it bounds the difference of
any two logits on its own. It takes a factorisation as large as the network is wide, so it is for small networks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from robustres.certify.blocks.direct_search import DirectSearch
from robustres.certify.blocks.incremental_form import IncrementalForm, hidden_matrix, nominal_cost
from robustres.certify.blocks.multiplier_form import Scaling
from robustres.certify.blocks.multiplier_search import descend, prove
from robustres.certify.blocks.residual_block import absolute_sector, sector_per_neuron, ties_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Source
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR
from robustres.certify.maps.sector import Sector, Slopes
from robustres.numerics import rounded_up

WIDTH = 2400  # input coordinates and hidden units together
MOST_BITS = 400  # binary orders of magnitude that the weights of all maps may be away from 1 together
MOST_PAIRS = 200  # pairs of classes that are bounded one by one
EXCESSES = (1.05, 1.3, 1.7, 2.5, 4.0)  # of the first multipliers over the least admissible ones


@dataclass(frozen=True, eq=False)
class WholeNetwork:
    """upper: a bound of the l2 Lipschitz constant of all logits together. pairs: (classes, classes) bounds of that of
    z_i - z_j. All are proved, deterministic.
    """

    upper: float
    pairs: Tensor


def whole_network(output: Node, *, effort: float) -> WholeNetwork | None:
    """Bounds of the whole network that ends in `output` (simplified); None where it is too wide, has no nonlinear
    part, ends in something else than a vector, or holds something that has no such inequality (pooling by maximum, a
    module that states its own bound).

    effort: nominal seconds, half of them for all logits together, the others for the pairs of classes.
    """
    order = output.ordered()
    if len(output.shape) != 1 or _width(order) > WIDTH:
        return None
    with torch.no_grad():
        form = _network_form(order)
        if form is None or not form.tie.numel():
            return None
        scaling = _searched(form, effort / 2)
        upper = prove(_Single(form), scaling) if math.isfinite(scaling.value) else math.inf
        if not math.isfinite(upper):
            return None
        classes = output.shape[0]
        pairs = torch.full((1, 1), rounded_up(math.sqrt(2) * upper, 2), dtype=torch.float64).expand(classes, classes)
        count = classes * (classes - 1) // 2
        if count <= MOST_PAIRS:
            pairs = pairs.clone()
        for i, j in combinations(range(classes), 2) if count <= MOST_PAIRS else ():
            found = _pair_bound(form, i, j, scaling.values, effort / 2 / count)
            pairs[i, j] = pairs[j, i] = min(found, float(pairs[i, j]))
    return WholeNetwork(upper, pairs)


def _pair_bound(form: IncrementalForm, i: int, j: int, multipliers: Tensor, effort: float) -> float:
    """Of z_i - z_j, from multipliers for all logits: |z_i - z_j|^2 <= 2 |z|^2, so that twice them are admissible."""
    source = _Single(_difference(form, i, j))
    scaling = source.evaluate(2 * multipliers)
    if not math.isfinite(scaling.value):
        return math.inf
    return prove(source, descend(source, scaling, effort=effort))


class _Single(DirectSearch):
    """One form, as the search wants it."""

    def __init__(self, form: IncrementalForm) -> None:
        self._form = form
        self.frequencies = torch.zeros(1, 2, dtype=torch.long)
        outputs, inputs = form.c_input.shape[-2:]
        self.cost = nominal_cost(inputs, form.c_hidden.shape[-1], outputs)

    def form(self, frequencies: Tensor) -> IncrementalForm:
        return self._form

    def chunks(self) -> Iterator[IncrementalForm]:
        yield self._form


def _searched(form: IncrementalForm, effort: float) -> Scaling:
    """The best of the first multipliers, then descent."""
    source = _Single(form)
    starts = [source.evaluate(values) for values in _first_multipliers(form)]
    best = min(starts, key=lambda scaling: scaling.value)
    return descend(source, best, effort=effort) if math.isfinite(best.value) else best


def _first_multipliers(form: IncrementalForm) -> Iterator[Tensor]:
    """From the last hidden layer to the first, each multiplier an excess over the least that keeps M definite
    (ECLipsE: Xu and Sivaranjani 2024); one for a whole layer, or by the row sums of what it has to outweigh."""
    layer = form.layer_of_tie[form.tie]
    floor = 1e-12 * float(form.c_hidden.abs().square().sum()) + 1e-300
    wide = len(form.tie) > 800  # each start takes a factorisation per layer
    for by_row in (False,) if wide else (False, True):
        for excess in EXCESSES[1:4:2] if wide else EXCESSES:
            weights = torch.zeros_like(form.tie, dtype=torch.float64)
            for place in sorted(set(layer.tolist()), reverse=True):  # layers of one slope have no units
                here, later = layer == place, layer > place
                demand = _demand(form, weights, here, later)
                if demand is None:
                    break
                least = demand.abs().sum(1) if by_row else torch.linalg.eigvalsh(demand)[-1].expand(len(demand))
                weights[here] = excess / 2 * least.clamp_min(floor)
            else:
                ties = torch.zeros(len(form.layer_of_tie), dtype=torch.float64, device=weights.device)
                yield ties.scatter_reduce(0, form.tie, weights, "amax")


def _demand(form: IncrementalForm, weights: Tensor, here: Tensor, later: Tensor) -> Tensor | None:
    """What 2 T of a layer must exceed, the later layers being eliminated; None where they cannot be."""
    matrix = hidden_matrix(form, weights)[0]
    demand = -matrix[here][:, here]
    if bool(later.any()):
        factor, info = torch.linalg.cholesky_ex(matrix[later][:, later])
        if int(info):
            return None
        crossing = torch.linalg.solve_triangular(factor, matrix[later][:, here], upper=False)
        demand = demand + crossing.mH @ crossing
    return demand


def _difference(form: IncrementalForm, i: int, j: int) -> IncrementalForm:
    """The form of one output, z_i - z_j."""
    c_input, c_hidden = (part[:, i : i + 1] - part[:, j : j + 1] for part in (form.c_input, form.c_hidden))
    outer = [part[:, i : i + 1] + part[:, j : j + 1] for part in form.absolute[:2]]
    absolute = (outer[0], outer[1], *form.absolute[2:])
    return IncrementalForm(
        c_input, c_hidden, form.z_input, form.z_hidden, form.tie, form.layer_of_tie, absolute, form.roundings + 1
    )


class _Signal(NamedTuple):
    """A node's difference as input (n, d) and hidden (n, units so far), and both with absolute values."""

    input: Tensor
    hidden: Tensor
    absolute_input: Tensor
    absolute_hidden: Tensor

    def widened(self, units: int) -> "_Signal":
        """With zeros for hidden units that it does not depend on."""
        missing = units - self.hidden.shape[1]
        hidden, absolute = (torch.nn.functional.pad(part, (0, missing)) for part in (self.hidden, self.absolute_hidden))
        return _Signal(self.input, hidden, self.absolute_input, absolute)


def _width(order: list[Node]) -> int:
    """Input coordinates and hidden units."""
    return math.prod(order[0].shape) + sum(math.prod(node.shape) for node in order if _slopes(node) is not None)


def _slopes(node: Node) -> Slopes | None:
    if isinstance(node.piece, Elementwise):
        return node.piece.slopes
    return node.piece.sorts if isinstance(node.piece, Opaque) else None


def _network_form(order: list[Node]) -> IncrementalForm | None:
    """The form of the last node; None where a piece has no inequality."""
    exponents = [node.piece.map.normalised()[1] for node in order if isinstance(node.piece, Linear)]
    if sum(map(abs, exponents)) > MOST_BITS:
        return None
    signals: dict[Node, _Signal] = {}
    layers: list[tuple[Sector, _Signal]] = []
    units = roundings = 0
    for node in order:
        inputs = [signals[parent].widened(units) for parent in node.inputs]
        slopes = _slopes(node)
        if isinstance(node.piece, Source):
            eye = torch.eye(math.prod(node.shape), dtype=torch.float64, device=_device(order))
            signals[node] = _Signal(eye, eye.new_zeros(len(eye), 0), eye, eye.new_zeros(len(eye), 0))
        elif isinstance(node.piece, Linear):
            signals[node] = _mapped(node.piece.map, inputs[0])
            roundings += ALGORITHM_FACTOR * node.piece.map.roundings + 4 * (node.piece.map.in_size + 4)
        elif slopes is not None:
            sector = sector_per_neuron(slopes, node.shape, inputs[0].input.device)
            kept = sector.upper > sector.lower
            z = _mixed(inputs[0], sector.mixing)
            layers.append((sector, _Signal(*(part[kept] for part in z))))
            signals[node] = _activated(z, sector, kept)
            units += int(kept.sum())
            roundings += 4 * (8 if sector.mixing is None else 8 + 2 * len(sector.lower))
        elif isinstance(node.piece, Merge) and node.piece.kind == "sum":
            signals[node] = _Signal(*(sum(parts[1:], parts[0]) for parts in zip(*inputs, strict=True)))
            roundings += 4 * len(inputs)
        elif isinstance(node.piece, Merge) and node.piece.axis is not None:
            signals[node] = _concatenated(inputs, node)
        else:
            return None
    return _assembled(layers, signals[order[-1]].widened(units), units, roundings + 64)


def _device(order: list[Node]) -> torch.device:
    maps = [node.piece.map for node in order if isinstance(node.piece, Linear)]
    return maps[0].device if maps else torch.device("cpu")


def _mapped(map_: LinearMap, signal: _Signal) -> _Signal:
    matrix = map_.dense()
    absolute = map_.absolute().dense()
    return _Signal(
        matrix @ signal.input,
        matrix @ signal.hidden,
        absolute @ signal.absolute_input,
        absolute @ signal.absolute_hidden,
    )


def _mixed(signal: _Signal, mixing: Tensor | None) -> _Signal:
    if mixing is None:
        return signal
    absolute = mixing.abs()
    return _Signal(
        mixing @ signal.input,
        mixing @ signal.hidden,
        absolute @ signal.absolute_input,
        absolute @ signal.absolute_hidden,
    )


def _activated(z: _Signal, sector: Sector, kept: Tensor) -> _Signal:
    """lower z + (upper - lower) u, with new hidden units u."""
    low, bounds = sector.lower[:, None], absolute_sector(sector)
    width = torch.diag(sector.upper - sector.lower)[:, kept]
    signal = _Signal(
        low * z.input,
        torch.cat((low * z.hidden, width), dim=1),
        bounds.lower[:, None] * z.absolute_input,
        torch.cat((bounds.lower[:, None] * z.absolute_hidden, width), dim=1),
    )
    return _mixed(signal, None if sector.mixing is None else sector.mixing.T)


def _concatenated(inputs: list[_Signal], node: Node) -> _Signal:
    assert isinstance(node.piece, Merge)
    assert node.piece.axis is not None
    axis = node.piece.axis
    shapes = [parent.shape for parent in node.inputs]
    parts = []
    for pieces in zip(*inputs, strict=True):
        images = [piece.reshape(*shape, -1) for piece, shape in zip(pieces, shapes, strict=True)]
        parts.append(torch.cat(images, dim=axis).reshape(math.prod(node.shape), -1))
    return _Signal(*parts)


def _assembled(
    layers: list[tuple[Sector, _Signal]], output: _Signal, units: int, roundings: int
) -> IncrementalForm | None:
    if not units:
        return None
    z = [signal.widened(units) for _, signal in layers]
    parts = [torch.cat([getattr(signal, name) for signal in z])[None] for name in _Signal._fields]
    z_input, z_hidden, absolute_input, absolute_hidden = parts
    several = len(layers) > 1
    absolute = (
        output.absolute_input[None],
        output.absolute_hidden[None],
        absolute_input,
        absolute_hidden if several else None,
    )
    return IncrementalForm(
        output.input[None],
        output.hidden[None],
        z_input,
        z_hidden if several else None,
        *ties_of([sector for sector, _ in layers]),
        absolute,
        roundings,
    )
