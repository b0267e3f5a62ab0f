"""Convolutions kept non-expansive by dividing by their true operator norm, as parametrisations of the kernel.

During training the norm is an estimate by warm-started power iteration on the operator itself (including zero padding,
stride and image size; not the norm of the reshaped kernel, which is far off). `settle`, which `materialise` calls,
replaces it by a bound; only then is the constraint guaranteed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Bound

# Storing a kernel in float32 changes its norm by less than this fraction; settled norms are enlarged by it.
STORAGE_SLACK = 1e-5


def full_precision(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Run the method outside autocast: norms and orthogonality need more precision than bfloat16."""

    @wraps(function)
    def outside(module: Any, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return function(module, weight)

    return outside


@dataclass(frozen=True)
class Geometry:
    """The geometry to which a kernel is applied: (C, H, W) of the features, stride and zero padding on both sides."""

    in_shape: tuple[int, int, int]
    stride: int = 1
    padding: int = 0

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The convolution of a batch, without bias."""
        return functional.conv2d(x, weight, None, self.stride, self.padding)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        """The transpose of `apply`, back on `in_shape`."""
        missing = [
            side - ((out - 1) * self.stride - 2 * self.padding + kernel)
            for side, out, kernel in zip(self.in_shape[1:], y.shape[2:], weight.shape[2:], strict=True)
        ]
        return functional.conv_transpose2d(y, weight, None, self.stride, self.padding, output_padding=missing)

    def linear_map(self, weight: Tensor) -> Convolution:
        """The same operator for the certifier."""
        both = (self.padding, self.padding)
        return Convolution(weight.detach(), self.in_shape, (self.stride, self.stride), (both, both))


class OperatorNorm(nn.Module):
    """The norm of [I +] conv(weight): a running estimate during training, a bound once settled.

    residual: whether the identity is added to the convolution. steps: power iterations per training step.
    """

    vector: Tensor
    norm: Tensor

    def __init__(self, geometry: Geometry, *, residual: bool = False, steps: int = 1) -> None:
        super().__init__()
        self.geometry, self.residual, self.steps = geometry, residual, steps
        start = torch.randn(1, *geometry.in_shape)
        self.register_buffer("vector", start / start.norm())
        self.register_buffer("norm", torch.ones(()))

    @full_precision
    def forward(self, weight: Tensor) -> Tensor:
        """The norm to divide by: in training mode a differentiable estimate, otherwise the stored value."""
        if not (self.training and torch.is_grad_enabled()):
            return self.norm
        with torch.no_grad():
            vector = self.vector
            for _ in range(self.steps):
                vector = functional.normalize(self._adjoint_map(weight, self._forward_map(weight, vector)).flatten(1))
                vector = vector.reshape(self.vector.shape)
            self.vector.copy_(vector)
        estimate: Tensor = self._forward_map(weight, vector).norm()
        self.norm.copy_(estimate.detach())
        return estimate

    def warm_up(self, weight: Tensor, steps: int = 20) -> None:
        """Run the iteration before training starts, so that a new network is already close to its constraint."""
        with torch.no_grad():
            for _ in range(steps):
                image = self._adjoint_map(weight, self._forward_map(weight, self.vector))
                self.vector.copy_(image / image.norm().clamp_min(1e-12))
            self.norm.copy_(self._forward_map(weight, self.vector).norm().clamp_min(1e-12))

    def bound(self, weight: Tensor) -> Bound:
        """The true norm, enclosed by an estimate and a bound."""
        return spectral_norm(self.linear_map(weight))

    def linear_map(self, weight: Tensor) -> LinearMap:
        """The operator whose norm this is."""
        convolution = self.geometry.linear_map(weight)
        return Identity(self.geometry.in_shape) + convolution if self.residual else convolution

    def settle(self, weight: Tensor) -> None:
        """Store a bound of the norm instead of the estimate."""
        self.norm.fill_(self.bound(weight).upper * (1 + STORAGE_SLACK))

    def _forward_map(self, weight: Tensor, x: Tensor) -> Tensor:
        image = self.geometry.apply(weight, x)
        return x + image if self.residual else image

    def _adjoint_map(self, weight: Tensor, y: Tensor) -> Tensor:
        image = self.geometry.adjoint(weight, y)
        return y + image if self.residual else image


class UnitNorm(nn.Module):
    """Parametrisation W -> W / |W|: a convolution of operator norm 1 at one image size."""

    def __init__(self, geometry: Geometry, *, steps: int = 1) -> None:
        super().__init__()
        self.operator = OperatorNorm(geometry, steps=steps)

    def forward(self, weight: Tensor) -> Tensor:
        divided: Tensor = weight / self.operator(weight)
        return divided

    def right_inverse(self, weight: Tensor) -> Tensor:
        self.operator.warm_up(weight)
        return weight

    def settle(self, weight: Tensor) -> None:
        """Divide by a bound from now on."""
        self.operator.settle(weight)


class UnitResidual(nn.Module):
    """Parametrisation W -> (I + W) / |I + W| - I: the sum of the identity and the convolution has norm 1."""

    identity: Tensor

    def __init__(self, geometry: Geometry, kernel: int, *, steps: int = 1) -> None:
        super().__init__()
        self.operator = OperatorNorm(geometry, residual=True, steps=steps)
        channels = geometry.in_shape[0]
        self.register_buffer("identity", nn.init.dirac_(torch.empty(channels, channels, kernel, kernel)))

    def forward(self, weight: Tensor) -> Tensor:
        scaled: Tensor = (self.identity + weight) / self.operator(weight) - self.identity
        return scaled

    def right_inverse(self, weight: Tensor) -> Tensor:
        self.operator.warm_up(weight)
        return weight

    def settle(self, weight: Tensor) -> None:
        """Divide by a bound from now on."""
        self.operator.settle(weight)
