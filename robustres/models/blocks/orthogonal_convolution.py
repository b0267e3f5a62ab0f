"""Orthogonal convolutions of 3 x 3 pixels, and the residual block whose linear part is one."""

from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.errors import ModelError
from robustres.models.blocks.merged import MergedBlock
from robustres.models.blocks.orthogonal import Factor, orthonormal_rows
from robustres.models.blocks.site import Site
from robustres.models.constraints.operator_norm import STORAGE_SLACK, full_precision

SIDE = 3
PROJECTIONS = 4  # two steps of one pixel along each axis
TURN = 0.3


class OrthogonalMinusIdentity(nn.Module):
    """A 3 x 3 kernel W such that I + W is an orthogonal convolution (Xiao et al. 2018; Li et al. 2019).

    For a projection P the kernel of two taps (P, I - P) is orthogonal: it moves the component I - P of the channels by
    one pixel and mixes nothing else. I + W composes four of them, two along each axis, and an orthogonal matrix on the
    channels. On a torus it is orthogonal exactly; with zero padding it is a submatrix of that map, with norm at most 1.
    Each P projects onto half of the channels, so their number is even. No norm is estimated and no power iteration is
    needed: the cost is that of a few products of channels x channels matrices. The unconstrained tensor, (3 C, C),
        contains the matrix (C rows) and one half-height frame for each projection.
    """

    shrink: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("shrink", torch.ones(()))
        self.on_manifold = False

    @full_precision
    def forward(self, weight: Tensor) -> Tensor:
        channels = self.channels
        parts = torch.split(weight if self.on_manifold else self.to_manifold(weight), self._heights())
        matrix, (first, second, third, fourth) = parts[0], (rows.T @ rows for rows in parts[1:])
        eye = torch.eye(channels, dtype=weight.dtype, device=weight.device)
        down = _composed((first, eye - first), (eye - second, second))
        across = _composed((third, eye - third), (eye - fourth, fourth)) @ matrix
        kernel = torch.einsum("aij,bjk->ikab", down, across)
        centre = torch.zeros_like(kernel)
        centre[:, :, SIDE // 2, SIDE // 2] = eye
        return self.shrink * kernel - centre

    def right_inverse(self, weight: Tensor) -> Tensor:
        """An initial value near an orthogonal map of each pixel: the two steps along an axis nearly cancel.

        The given kernel only determines the number of channels: not every kernel has a preimage.
        """
        channels = self.channels
        rows = [nn.init.orthogonal_(weight.new_empty(channels, channels))]
        for _ in range(PROJECTIONS // 2):
            frame = nn.init.orthogonal_(weight.new_empty(channels // 2, channels))
            rows += [frame, frame + TURN / channels**0.5 * torch.randn_like(frame)]
        return torch.cat(rows)

    def _heights(self) -> list[int]:
        """Rows of the matrix and of each frame."""
        return [self.channels, *(self.channels // 2,) * PROJECTIONS]

    def to_manifold(self, weight: Tensor) -> Tensor:
        return torch.cat([orthonormal_rows(part) for part in torch.split(weight, self._heights())])

    def from_manifold(self, weight: Tensor) -> Tensor:
        return weight

    def factors(self, weight: Tensor) -> tuple[Factor, ...]:
        ends = accumulate(self._heights())
        first, *frames = (slice(end - height, end) for end, height in zip(ends, self._heights(), strict=True))
        return (Factor(first, "rotation"), *(Factor(rows, "isometry") for rows in frames))

    def settle(self, weight: Tensor) -> None:
        """Allow for the rounding of the stored kernel, so that |I + W| is at most 1."""
        self.shrink.fill_(1 - STORAGE_SLACK)


def _composed(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """The three taps (3, C, C) of two kernels of two taps each, one after the other."""
    return torch.stack((first[0] @ second[0], first[0] @ second[1] + first[1] @ second[0], first[1] @ second[1]))


class OrthogonalConvolutionBlock(MergedBlock):
    """act(x + W x + b) with I + W an orthogonal 3 x 3 convolution: it mixes neighbours and never stretches or shrinks.

    Lipschitz constant: at most 1, and exactly 1 for features away from the border.
    """

    def __init__(self, site: Site) -> None:
        if site.stride != 1 or site.kernel != SIDE or site.channels % 2:
            raise ModelError(
                "a block of orthogonal convolutions keeps its size, has kernels of side 3 and an even number of "
                f"channels, got stride {site.stride}, kernel {site.kernel} and {site.channels} channels"
            )
        super().__init__(nn.Conv2d(site.channels, site.channels, SIDE, padding=SIDE // 2), site)
        parametrize.register_parametrization(self.branch, "weight", OrthogonalMinusIdentity(site.channels))
