"""A residual block S x + V phi(... phi(W x)) and its incremental form: on a torus, frequency by frequency, or dense."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.direct_search import DirectSearch
from robustres.certify.blocks.incremental_form import IncrementalForm, nominal_cost
from robustres.certify.fourier.matrix_polynomial import polynomial
from robustres.certify.fourier.torus import Embedding, Torus, coarse_frequencies, embed, passage
from robustres.certify.maps.linear_map import (
    LinearMap,
    Shape,
)
from robustres.certify.maps.rounding import ALGORITHM_FACTOR
from robustres.certify.maps.sector import Sector, Slopes, sector
from robustres.errors import InputError

CHUNK_BYTES = 96 * 2**20
EVERYWHERE = (-(10**9), 10**9)


@dataclass(frozen=True)
class ResidualBlock:
    """y = shortcut x + layers[-1] phi_k(... layers[1] phi_1(layers[0] x)); biases cancel in differences.

    slopes: one activation per hidden layer, as two numbers a <= b or a `GroupSort`.
    """

    shortcut: LinearMap
    layers: tuple[LinearMap, ...]
    slopes: tuple[Slopes, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.slopes) + 1 or not self.slopes:
            raise InputError(
                f"{len(self.layers)} layers need {len(self.layers) - 1} activations between them, at least 1"
            )
        shapes = [self.shortcut.in_shape, *(layer.out_shape for layer in self.layers)]
        if shapes[-1] != self.shortcut.out_shape or any(
            layer.in_shape != shape for layer, shape in zip(self.layers, shapes, strict=False)
        ):
            raise InputError(
                f"the branch {' -> '.join(map(str, shapes))} does not fit the shortcut "
                f"{self.shortcut.in_shape} -> {self.shortcut.out_shape}"
            )


class TorusForm(DirectSearch):
    """The block's incremental form at the frequencies of one torus, in chunks of bounded memory."""

    def __init__(self, block: ResidualBlock, embedding: Embedding, torus: Torus) -> None:
        self.block, self.embedding, self.torus = block, embedding, torus
        self.frequencies = coarse_frequencies(torus).to(block.shortcut.device)
        self._shortcut, _ = polynomial(block.shortcut, embedding.multiplicity)
        self._layers, tiles, multiplicity = [], [], embedding.multiplicity
        for layer in block.layers:
            found, multiplicity = polynomial(layer, multiplicity)
            self._layers.append(found)
            tiles.append(math.prod(multiplicity))
        self.sectors = [_tiled(*pair) for pair in zip(_sectors_on_torus(block), tiles, strict=False)]
        with torch.no_grad():
            self._absolute = _assemble(
                self._shortcut.magnitude[None],
                [layer.magnitude[None] for layer in self._layers],
                [absolute_sector(sector_) for sector_ in self.sectors],
            )
            self.cost = _cost(self.form(self.frequencies[:1]))

    def __len__(self) -> int:
        return len(self.frequencies)

    def form(self, frequencies: Tensor) -> IncrementalForm:
        """The form at some of the frequencies (F, 2); differentiable in the weights."""
        shortcut, *layers = (found.at(self.torus, frequencies) for found in (self._shortcut, *self._layers))
        count = sum(found.wave_roundings for found in (self._shortcut, *self._layers))
        count += 4 * sum(matrix.shape[-1] + 2 for matrix in layers) + 16 * len(layers)
        return IncrementalForm(
            *_assemble(shortcut, layers, self.sectors), *ties_of(self.sectors), self._absolute, count
        )

    def chunks(self) -> Iterator[IncrementalForm]:
        """The form at all frequencies, piece by piece."""
        widths = [math.prod(self.embedding.multiplicity) * self.block.shortcut.in_shape[0]]
        widths += [layer.out_shape[0] for layer in self.block.layers]
        per_chunk = max(1, CHUNK_BYTES // (16 * sum(widths) ** 2))
        for chunk in torch.split(self.frequencies, per_chunk):
            yield self.form(chunk)


class DenseForm(DirectSearch):
    """The block's incremental form as one real matrix, with a multiplier per neuron: for small blocks."""

    def __init__(self, block: ResidualBlock) -> None:
        maps = (block.shortcut, *block.layers)
        matrices = [map_.dense()[None] for map_ in maps]
        sectors = [
            sector_per_neuron(s, layer.out_shape, layer.device)
            for s, layer in zip(block.slopes, block.layers, strict=False)
        ]
        with torch.no_grad():
            bounds = [map_.absolute().dense()[None] for map_ in maps]
            absolute = _assemble(bounds[0], bounds[1:], [absolute_sector(s) for s in sectors])
        count = ALGORITHM_FACTOR * sum(map_.roundings for map_ in maps) + 4 * sum(m.shape[-1] for m in matrices)
        self._form = IncrementalForm(
            *_assemble(matrices[0], matrices[1:], sectors), *ties_of(sectors), absolute, count + 16 * len(maps)
        )
        self.frequencies = torch.zeros(1, 2, dtype=torch.long)
        self.cost = _cost(self._form)

    def __len__(self) -> int:
        return 1

    def form(self, frequencies: Tensor) -> IncrementalForm:
        """The one form there is."""
        return self._form

    def chunks(self) -> Iterator[IncrementalForm]:
        """The one form there is."""
        yield self._form


def _cost(form: IncrementalForm) -> float:
    outputs, inputs = form.c_input.shape[-2:]
    return nominal_cost(inputs, form.c_hidden.shape[-1], outputs)


def block_embedding(block: ResidualBlock) -> Embedding | None:
    """Where the block fits on tori; None where some part is no zero-padded or circular convolution."""
    return embed([[block.shortcut], list(block.layers)])


def _sectors_on_torus(block: ResidualBlock) -> list[Sector]:
    """The sectors of the hidden layers; those whose cut-off values the next layer would read contain the slope 0."""
    sectors = []
    for slopes, layer, following in zip(block.slopes, block.layers, block.layers[1:], strict=False):
        inner = sector(slopes, layer.out_shape[0], layer.device)
        cut = any(_values_outside_are_read(layer, following, axis) for axis in (0, 1))
        sectors.append(inner.with_zero() if cut else inner)
    return sectors


def _values_outside_are_read(layer: LinearMap, following: LinearMap, axis: int) -> bool:
    """Whether a circular layer would make values outside the image that the following layer then reads."""
    found = passage(layer, axis, (0, layer.in_shape[1 + axis] - 1))
    clean = found is not None and found.support[0] >= 0 and found.support[1] < layer.out_shape[1 + axis]
    return not clean and passage(following, axis, EVERYWHERE) is None


def _assemble(
    shortcut: Tensor, layers: Sequence[Tensor], sectors: Sequence[Sector]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """c_input, c_hidden, z_input, z_hidden: the signal after each layer is kept as signal_input d + signal_hidden u."""
    signal_input: Tensor | None = None  # None: zero
    signal_hidden: Tensor | None = None
    z_inputs: list[Tensor] = []
    z_hiddens: list[Tensor | None] = []
    for index, (layer, sector_) in enumerate(zip(layers, sectors, strict=False)):
        kept = sector_.upper > sector_.lower
        z_input: Tensor | None = layer if index == 0 else _product(layer, signal_input)
        z_hidden = None if index == 0 else _product(layer, signal_hidden)
        if sector_.mixing is not None:
            mixing = sector_.mixing.to(layer.dtype)
            z_input, z_hidden = _product(mixing, z_input), _product(mixing, z_hidden)
        if z_input is None:
            z_input = layer.new_zeros(len(layer), layer.shape[-2], layers[0].shape[-1])
        z_inputs.append(z_input[:, kept])
        z_hiddens.append(None if z_hidden is None else z_hidden[:, kept])
        width = torch.diag(sector_.upper - sector_.lower)[:, kept].to(layer.dtype).expand(len(layer), -1, -1)
        slope = sector_.lower[:, None].to(layer.dtype)
        flat = bool((sector_.lower == 0).all())
        signal_input = None if flat else slope * z_input
        through = None if flat or z_hidden is None else slope * z_hidden
        if through is None:
            through = layer.new_zeros(len(layer), layer.shape[-2], sum(z.shape[1] for z in z_inputs[:-1]))
        signal_hidden = torch.cat((through, width), dim=-1)
        if sector_.mixing is not None:
            mixing = sector_.mixing.T.to(layer.dtype)
            signal_input, signal_hidden = _product(mixing, signal_input), mixing @ signal_hidden
    outer = _product(layers[-1], signal_input)
    c_hidden = _product(layers[-1], signal_hidden)
    c_input = shortcut if outer is None else shortcut + outer
    if c_hidden is None:
        raise InputError("a block needs a hidden layer")
    return c_input, c_hidden, torch.cat(z_inputs, dim=-2), _lower_triangle(z_hiddens, z_inputs)


def _product(left: Tensor, right: Tensor | None) -> Tensor | None:
    return None if right is None else left @ right


def _lower_triangle(z_hiddens: Sequence[Tensor | None], z_inputs: Sequence[Tensor]) -> Tensor | None:
    """The rows of all layers on the hidden coordinates of the layers before them; None for a single layer."""
    if len(z_inputs) == 1:
        return None
    total = sum(z.shape[-2] for z in z_inputs)
    rows = []
    for z_hidden, z_input in zip(z_hiddens, z_inputs, strict=True):
        row = z_input.new_zeros(len(z_input), z_input.shape[-2], total)
        if z_hidden is not None:
            row = torch.cat((z_hidden, row[..., z_hidden.shape[-1] :]), dim=-1)
        rows.append(row)
    return torch.cat(rows, dim=-2)


def _tiled(sector_: Sector, tiles: int) -> Sector:
    """The sector of a signal at multiplicity: the same channels at every aliased frequency, tied together."""
    mixing = sector_.mixing
    if mixing is not None:
        mixing = torch.kron(torch.eye(tiles, dtype=mixing.dtype, device=mixing.device), mixing)
    return Sector(sector_.lower.repeat(tiles), sector_.upper.repeat(tiles), sector_.tie.repeat(tiles), mixing)


def sector_per_neuron(slopes: Slopes, shape: Shape, device: torch.device) -> Sector:
    """The sector of a flattened hidden layer (C, ...): every position of every channel is a neuron of its own."""
    channels = shape[0]
    positions = math.prod(shape) // channels
    inner = sector(slopes, channels, device)
    tie = inner.tie[:, None] * positions + torch.arange(positions, device=device)
    mixing = inner.mixing
    if mixing is not None:
        mixing = torch.kron(mixing, torch.eye(positions, dtype=mixing.dtype, device=mixing.device))
    repeat = (inner.lower.repeat_interleave(positions), inner.upper.repeat_interleave(positions))
    return Sector(*repeat, tie.flatten(), mixing)


def absolute_sector(sector_: Sector) -> Sector:
    """Absolute slopes, and a mixing of absolute values."""
    lower = sector_.lower.abs()
    mixing = None if sector_.mixing is None else sector_.mixing.abs()
    return Sector(lower, lower + (sector_.upper - sector_.lower), sector_.tie, mixing)


def ties_of(sectors: Sequence[Sector]) -> tuple[Tensor, Tensor]:
    """(H,) number of the multiplier of each kept hidden coordinate, without gaps; and the layer of each multiplier."""
    parts, layers, offset = [], [], 0
    for layer, sector_ in enumerate(sectors):
        tie = sector_.tie[sector_.upper > sector_.lower]
        numbers = torch.unique(tie, return_inverse=True)[1]
        parts.append(numbers + offset)
        count = int(numbers.max()) + 1 if len(numbers) else 0
        layers += [layer] * count
        offset += count
    return torch.cat(parts), torch.tensor(layers, dtype=torch.long, device=parts[0].device)
