"""The Lipschitz constant of everything before the head, as training needs it: a number to differentiate.

Known by construction if the blocks are constrained; otherwise an estimate by warm-started power iteration, layer by
layer, combined with the textbook bound of each block. It is never a certificate.
"""

import math

import torch
from torch import Tensor, nn

from robustres.errors import InputError
from robustres.models import Normalised, ResidualNet
from robustres.models.blocks.ordinary import PlainBlock, PreActivationBlock, ResidualBlock
from robustres.models.constraints.operator_norm import Geometry, OperatorNorm
from robustres.training.margins import row_distances


class Body(nn.Module):
    """Called without arguments, the estimated norm before the head of `model` in pixel units.

    model: a `ResidualNet`, also inside `Normalised`; ordinary blocks without batch normalisation.
    Raises InputError for other networks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        inner = model.model if isinstance(model, Normalised) else model
        if not isinstance(inner, ResidualNet):
            raise InputError(f"a certified loss needs a network of residual_net, got {type(inner).__name__}")
        self.factor = 1 / float(model.std.min()) if isinstance(model, Normalised) else 1.0
        self._network = (inner,)  # a tuple, so that its parameters are not registered twice
        self.norms = nn.ModuleDict()
        if not math.isfinite(inner.budget):
            self._measure(inner)

    @property
    def network(self) -> ResidualNet:
        """The network without its normalisation."""
        return self._network[0]

    def distances(self, labels: Tensor) -> Tensor:
        """How fast z_y - z_j can change with the features, for each label y and every class j: (N, classes)."""
        return row_distances(self.network.head, labels)

    def forward(self) -> Tensor:
        if not self.norms:
            return torch.tensor(self.factor * self.network.budget, device=self.network.head.weight.device)
        total = self.factor * self._norm("stem", self.network.stem[0])
        for position, block in enumerate(self.network.blocks):
            assert isinstance(block, PlainBlock | ResidualBlock | PreActivationBlock)
            branch = self._norm(f"{position}-0", _convolution(block, 0)) * self._norm(
                f"{position}-2", _convolution(block, 2)
            )
            if isinstance(block, PlainBlock):
                total = total * branch
            elif isinstance(block.shortcut, nn.Identity):
                total = total * (1 + branch)
            else:
                total = total * (self._norm(f"{position}-s", block.shortcut) + branch)
        return total

    def _norm(self, key: str, layer: nn.Module) -> Tensor:
        estimate: Tensor = self.norms[key](layer.weight)
        return estimate

    def _measure(self, network: ResidualNet) -> None:
        """One estimator per convolution, each at the image size that it really sees."""
        if network.architecture.batch_norm or network.architecture.pool is not None:
            raise InputError("certified losses take ordinary networks without batch normalisation and pooling only")
        shape: tuple[int, int, int] = network.architecture.image_shape
        shape = self._add("stem", network.stem[0], shape)
        for position, block in enumerate(network.blocks):
            if not isinstance(block, PlainBlock | ResidualBlock | PreActivationBlock):
                raise InputError(f"no norm is known for {type(block).__name__}; use a constrained block")
            if not isinstance(block, PlainBlock) and isinstance(block.shortcut, nn.Conv2d):
                self._add(f"{position}-s", block.shortcut, shape)
            hidden = self._add(f"{position}-0", _convolution(block, 0), shape)
            shape = self._add(f"{position}-2", _convolution(block, 2), hidden)

    def _add(self, key: str, layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        assert isinstance(layer, nn.Conv2d)
        geometry = Geometry(shape, int(layer.stride[0]), int(layer.padding[0]))
        self.norms[key] = OperatorNorm(geometry)
        self.norms[key].warm_up(layer.weight)  # type: ignore[operator]
        _, channels, height, width = geometry.apply(layer.weight.detach(), layer.weight.new_zeros(1, *shape)).shape
        return channels, height, width


def _convolution(block: PlainBlock | ResidualBlock | PreActivationBlock, place: int) -> nn.Module:
    """The convolution at that place of the branch, without the normalisation after it."""
    stage = block.branch[place]
    assert isinstance(stage, nn.Sequential)
    return stage[0]
