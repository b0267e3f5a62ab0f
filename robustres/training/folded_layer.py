"""Layers as a network applies them: a batch normalisation directly after a convolution is part of its map."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustres.certify.graph.capture import device_of
from robustres.certify.maps.linear_map import LinearMap
from robustres.models.blocks.stated import map_of
from robustres.precision import taking

Layer = nn.Conv2d | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """A convolution or dense layer at one image size, with the batch normalisation that takes its output, if any.

    shape: of its input, unbatched. The map is that of evaluation mode: row by row, the layer's weight times gamma /
        sqrt(var + eps).
    """

    layer: Layer
    shape: tuple[int, ...]
    norm: BatchNorm | None = None

    @property
    def folded(self) -> Layer:
        """A float64 copy of the layer with the normalisation's gains in its weight."""
        plain = copy.deepcopy(self.layer).double()
        with torch.no_grad():
            plain.weight.mul_(self._gains())
        return plain

    @property
    def map(self) -> LinearMap:
        """For the certifier."""
        return map_of(self.folded, self.shape)

    def replace(self, weight: Tensor) -> None:
        """Store a weight given in folded form; a channel with gain 0 keeps its weight, which has no effect."""
        gains = self._gains()
        with torch.no_grad():
            seen = torch.where(gains == 0, self.layer.weight.double(), weight / gains.where(gains != 0, 1))
            self.layer.weight.copy_(seen)

    def _gains(self) -> Tensor:
        """One factor per row of the weight, float64, shaped to multiply it."""
        rows = torch.ones(len(self.layer.weight), dtype=torch.float64, device=self.layer.weight.device)
        if self.norm is not None:
            assert self.norm.running_var is not None
            rows = (self.norm.running_var.double() + self.norm.eps).rsqrt()
            rows = rows if self.norm.weight is None else rows * self.norm.weight.detach().double()
        return rows.reshape(-1, *(1,) * (self.layer.weight.ndim - 1))


def folded_layers(network: nn.Module, input_shape: tuple[int, ...]) -> list[FoldedLayer]:
    """Every plain nn.Conv2d (padded in numbers) and nn.Linear that is used once, from one pass of an image of zeros."""
    shapes: dict[Layer, tuple[int, ...]] = {}
    twice: set[nn.Module] = set()
    norms: dict[Layer, BatchNorm] = {}
    makers: dict[int, tuple[Tensor, Layer]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module in shapes:
                twice.add(module)
            shapes[module] = tuple(inputs[0].shape[1:])
            makers[id(output)] = (output, module)
        elif isinstance(module, BatchNorm) and id(inputs[0]) in makers:
            norms[makers[id(inputs[0])][1]] = module

    kinds = {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d}
    hooks = [module.register_forward_hook(record) for module in network.modules() if type(module) in kinds]
    images = torch.zeros(1, *input_shape, device=device_of(network))
    try:
        with torch.no_grad():
            taking(network, images)(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        FoldedLayer(layer, shape, norms.get(layer))
        for layer, shape in shapes.items()
        if layer not in twice and not isinstance(getattr(layer, "padding", 0), str)
    ]
