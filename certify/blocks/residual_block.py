"""A residual block S x + V phi(... phi(W x)): its maps and activations, also as a small network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Piece, Source
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.maps.nonlinear import Sort
from robustres.certify.maps.piecewise_linear import Relu
from robustres.certify.maps.sector import GroupSort, Slopes, sector
from robustres.errors import InputError


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
        for layer, slopes in zip(self.layers, self.slopes, strict=False):
            sector(slopes, layer.out_shape[0])  # raises if the slopes or the groups are invalid

    def network(self) -> Node:
        """The output as a node, with everything before it."""
        graph = fx.Graph()

        def node(piece: Piece, *inputs: Node) -> Node:
            shape = piece.map.out_shape if isinstance(piece, Linear) else inputs[0].shape
            return Node(piece, inputs, shape, "", graph.placeholder("value"))

        source = Node(Source(), (), self.shortcut.in_shape, "", graph.placeholder("input"))

        def through(map_: LinearMap, value: Node) -> Node:
            same = isinstance(map_, Identity) and map_.in_shape == map_.out_shape
            return value if same else node(Linear(map_), value)

        value = through(self.layers[0], source)
        for layer, slopes in zip(self.layers[1:], self.slopes, strict=True):
            piece: Piece
            piece = Sort(0, sorts=slopes) if isinstance(slopes, GroupSort) else Elementwise(Relu(), within=slopes)
            value = through(layer, node(piece, value))
        return node(Merge("sum"), through(self.shortcut, source), value)

    def cancelling(self, *, per_channel: bool) -> Tensor | None:
        """The multipliers that decouple the hidden layer from the input, S^T V + W^T T = 0. They recognise blocks that
        are 1-Lipschitz by construction, such as CPL and SLL.

        per_channel: one for each channel (C, H, W), that of the unit in the middle; otherwise one for every unit.
        None if some are not positive, if the block has several hidden layers, or if its slopes are not [0, b].
        """
        slopes, shape = self.slopes[0], self.layers[0].out_shape
        if len(self.slopes) > 1 or isinstance(slopes, GroupSort) or slopes[0] != 0:
            return None
        places = torch.arange(math.prod(shape))
        if per_channel:
            places = places.reshape(shape)[:, shape[1] // 2, shape[2] // 2]
        found = []
        for part in torch.split(places, 16):  # usually the first ones already show that there are none
            units = torch.zeros(len(part), math.prod(shape), dtype=torch.float64, device=self.shortcut.device)
            units[torch.arange(len(part)), part] = 1.0
            units = units.reshape(-1, *shape)
            rows = self.layers[0].adjoint(units)
            crossing = (self.layers[1](units) * self.shortcut(rows)).flatten(1).sum(1)
            found.append(-slopes[1] * crossing / rows.square().flatten(1).sum(1))
            if not bool((found[-1] > 0).all()):
                return None
        return torch.cat(found)
