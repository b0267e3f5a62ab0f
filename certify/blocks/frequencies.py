"""Rows and maps at the coarse frequencies of a region's torus, where a node's coordinates are channels and residues."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from robustres.certify.blocks.front import UP, Pulled, Space
from robustres.certify.blocks.increments import Increment, SectorLayer, spread
from robustres.certify.blocks.torus_network import Region
from robustres.certify.fourier.matrix_polynomial import MatrixPolynomial, polynomial
from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import LinearMap, Shape
from robustres.numerics import gamma


@dataclass(frozen=True, eq=False)
class Frequencies(Space):
    """Rows at the coarse frequencies (F, 2) of a region's torus. A node's coordinates are its channels and residues."""

    region: Region
    frequencies: Tensor

    def shape(self, node: Node) -> Shape:
        """(C, r_1, r_2) for a multiplicity (r_1, r_2)."""
        return (node.shape[0], *self.region.multiplicity[node])

    def polynomial(self, node: Node, map_: LinearMap) -> MatrixPolynomial:
        """The polynomial of a linear node's map, residues before channels."""
        return polynomial(map_, self.region.multiplicity[node.inputs[0]])[0]

    def values(self, node: Node, found: MatrixPolynomial) -> Tensor:
        """The complex values (F, m, n) of a polynomial, channels first."""
        values = found.at(self.region.torus, self.frequencies)
        return _channels_first(_channels_first(values, self.shape(node)).mT, self.shape(node.inputs[0])).mT

    def pull(self, node: Node, map_: LinearMap, rows: Tensor) -> Pulled:
        """Multiply by the values of the map's polynomial."""
        found = self.polynomial(node, map_)
        image = rows @ self.values(node, found).to(rows.dtype)
        across, down = (float(found.magnitude.sum(axis).max()) for axis in (-1, -2))
        steep = math.sqrt(across) * math.sqrt(down) * (1 + gamma(sum(found.magnitude.shape) + 8))
        roundings = found.wave_roundings + 8 + 5 * sum(found.magnitude.shape)
        return Pulled(image, gamma(roundings) * steep * UP, steep)


# Rows (F, R, n) of a region's output at given frequencies, and their slack.
Start = Callable[[Frequencies], tuple[Tensor, float]]


def _channels_first(values: Tensor, shape: Shape) -> Tensor:
    """(F, r_1 r_2 C, n) as (F, C r_1 r_2, n)."""
    channels, residues = shape[0], math.prod(shape[1:])
    return values.reshape(len(values), residues, channels, -1).transpose(1, 2).reshape(values.shape)


def local_layers(region: Region, layers: Mapping[Node, Increment]) -> dict[Node, Increment]:
    """The layers of a region at one frequency."""
    found: dict[Node, Increment] = {}
    for node in region.order:
        layer = layers.get(node)
        if isinstance(layer, SectorLayer):
            found[node] = spread(layer, (node.shape[0], *region.multiplicity[node]))
    return found
