"""Residual networks from one description: stem, blocks, pooling, linear head."""

import math
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from robustres.errors import ModelError
from robustres.guard import random_state_kept
from robustres.models.blocks.by_name import ORDINARY, make_block
from robustres.models.blocks.merged import convolved
from robustres.models.blocks.orthogonal import SemiOrthogonal
from robustres.models.blocks.shifted import OrthogonalDense, ShiftTransition, WindowConvolution
from robustres.models.blocks.site import Site
from robustres.models.blocks.transition import Transition
from robustres.models.constraints.activations import ActivationName, activation
from robustres.models.constraints.operator_norm import Geometry, UnitNorm


@dataclass(frozen=True)
class Architecture:
    """Everything needed to rebuild a network.

    block: a name of robustres.models.BLOCKS. depth: number of blocks. width: channels after the stem.
    image_shape: (C, H, W). classes: number of logits.
    kernel: side of the blocks' convolutions, odd. activation: "relu", "maxmin", "half-abs" or "identity".
    stem_kernel, stem_stride: of the first convolution; a stride above 1 makes patches.
    downsample: the positions of blocks that see the image halved and twice the width: an ordinary block does so itself,
        a constrained one is preceded by a `Transition`. growth: the factor of the width at each of these transitions, 1
        to 4; 2 by default.
    widths: channels after each transition of a network of shift blocks, instead of `growth`; there a position in
        `downsample` may equal `depth`, for a transition after the last block.
    dense: widths of orthogonal layers on the flattened features, before the head.
    pool: side to which the features are average-pooled before the head; None only flattens them.
    head: "free", or "normalised" for rows of norm 1 (last-layer normalisation, Singla et al. 2022), so that each
        margin changes at most by sqrt(2) per unit of input.
    batch_norm: in ordinary blocks. scale: step or share of the branch, for the blocks that have one.
    """

    block: str
    depth: int
    width: int
    image_shape: tuple[int, int, int]
    classes: int
    kernel: int = 3
    activation: ActivationName = "relu"
    stem_kernel: int = 3
    stem_stride: int = 1
    downsample: tuple[int, ...] = ()
    growth: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    pool: int | None = None
    batch_norm: bool = False
    scale: float = 0.5
    head: str = "free"

    def __post_init__(self) -> None:
        if self.depth < 0 or self.width < 1 or self.classes < 2 or len(self.image_shape) != 3:
            raise ModelError(
                f"a network needs depth >= 0, width >= 1, at least 2 classes and an image_shape (C, H, W), got depth "
                f"{self.depth}, width {self.width}, {self.classes} classes and {self.image_shape}"
            )
        if self.kernel % 2 == 0:
            raise ModelError(f"kernel must be odd, so that a block keeps its size, got {self.kernel}")
        if self.growth and (len(self.growth) != len(self.downsample) or not set(self.growth) <= {1, 2, 3, 4}):
            raise ModelError(
                f"growth must give 1, 2, 3 or 4 for each of the {len(self.downsample)} positions of downsample, got "
                f"{self.growth}"
            )
        if self.growth and self.block in ORDINARY:
            raise ModelError(f"growth is for constrained blocks; {self.block!r} doubles its width where it downsamples")
        transitions = len(self.downsample) if self.block == "shift" else 0
        if len(self.widths) != transitions:
            raise ModelError(
                f"widths gives the channels after each transition of a network of shift blocks: {transitions} numbers "
                f"here, got {self.widths}"
            )
        if any(side < self.stem_kernel - 2 * self.stem_padding for side in self.image_shape[1:]):
            raise ModelError(f"images {self.image_shape} are smaller than the stem's kernel {self.stem_kernel}")

    @property
    def stem_padding(self) -> int:
        """Zeros on each side: none for patches, otherwise as many as keep the size at stride 1."""
        return 0 if self.stem_kernel == self.stem_stride else self.stem_kernel // 2

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Architecture":
        """The inverse of `as_dict`, also from JSON (lists become tuples); raises ModelError for invalid values."""
        try:
            settings: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
            }
            return cls(**settings)
        except TypeError as error:
            raise ModelError(
                f"this architecture cannot be read ({error}); it needs the fields of Architecture"
            ) from error


class UnitLength(nn.Module):
    """Parametrisation of a matrix: every row divided by its norm."""

    def forward(self, weight: Tensor) -> Tensor:
        return functional.normalize(weight, dim=1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class ResidualNet(nn.Module):
    """stem -> blocks -> pooling or flattening -> linear head; images (N, C, H, W) in, logits (N, classes) out.

    In a network of constrained blocks the stem is non-expansive as well; the head is free, since its Lipschitz
    constant enters the radius through the differences of its rows (section 4 of the mathematics).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem, site = _stem(architecture)
        blocks: list[nn.Module] = []
        growth = iter(architecture.growth or (2,) * len(architecture.downsample))
        widths = iter(architecture.widths)
        for position in range(architecture.depth + 1):
            if architecture.block == "shift" and position in architecture.downsample:
                blocks.append(ShiftTransition(site, width := next(widths)))
                site = replace(_after(site, 2), channels=width)
            if position == architecture.depth:
                break
            stride = 2 if position in architecture.downsample and architecture.block != "shift" else 1
            if stride == 2 and architecture.block not in ORDINARY:
                blocks.append(transition := Transition(site, next(growth)))
                site, stride = replace(_after(site, stride), channels=transition.convolution.out_channels), 1
            blocks.append(make_block(architecture.block, replace(site, stride=stride)))
            site = _after(site, stride)
        self.blocks = nn.Sequential(*blocks)
        features = site.channels * site.size[0] * site.size[1]
        self.pool: nn.Module = nn.Identity()
        if architecture.pool is not None:
            self.pool, features = _pool(site, architecture.pool)
        sizes = (features, *architecture.dense)
        self.dense = nn.Sequential(*(OrthogonalDense(before, after, site) for before, after in pairwise(sizes)))
        features = sizes[-1]
        self.head = nn.Linear(features, architecture.classes)
        if architecture.head == "normalised":
            parametrize.register_parametrization(self.head, "weight", UnitLength())
        elif architecture.head != "free":
            raise ModelError(f"head must be free or normalised, got {architecture.head!r}")

    @property
    def budget(self) -> float:
        """Lipschitz constant that the parametrisations guarantee for everything before the head; infinite without
        constraints.
        """
        return math.prod(getattr(block, "budget", math.inf) for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The input of the head, (N, features)."""
        convolution, act = self.stem
        if self.training and isinstance(convolution, WindowConvolution):
            out: Tensor = convolution.activated(x, act)
        else:
            out = act(convolved(convolution, x))
        out = self.pool(self.blocks(out))
        flat: Tensor = self.dense(out.flatten(1))
        return flat


def residual_net(
    *,
    block: str,
    depth: int,
    width: int,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int = 0,
    **settings: Any,
) -> ResidualNet:
    """A residual network by the fields of `Architecture`, its random weights drawn from `seed`.

    >>> net = residual_net(block="residual", depth=2, width=8, image_shape=(1, 8, 8), classes=10)
    >>> sum(parameter.numel() for parameter in net.parameters())
    7546
    """
    known = {field.name for field in fields(Architecture)}
    if unknown := sorted(settings.keys() - known):
        raise ModelError(f"residual_net has no setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    shared: dict[str, Any] = {
        "block": block,
        "depth": depth,
        "width": width,
        "image_shape": image_shape,
        "classes": classes,
    }
    return build(Architecture(**shared, **settings), seed=seed)


def build(architecture: Architecture, *, seed: int = 0) -> ResidualNet:
    """The network of an architecture, its random weights drawn from `seed`; the global random state is kept."""
    with random_state_kept():
        torch.manual_seed(seed)
        return ResidualNet(architecture)


def _stem(architecture: Architecture) -> tuple[nn.Sequential, Site]:
    """The first convolution with its activation, and the place after it."""
    channels, height, width = architecture.image_shape
    kernel, stride, padding = architecture.stem_kernel, architecture.stem_stride, architecture.stem_padding
    convolution = (
        WindowConvolution(channels, architecture.width, kernel)
        if architecture.block == "shift" and kernel == stride
        else nn.Conv2d(channels, architecture.width, kernel, stride, padding)
    )
    if architecture.block not in ORDINARY:
        disjoint = kernel == stride
        parametrisation = (
            SemiOrthogonal() if disjoint else UnitNorm(Geometry(architecture.image_shape, stride, padding))
        )
        parametrize.register_parametrization(convolution, "weight", parametrisation)
    size = ((height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1)
    site = Site(
        architecture.width,
        size,
        architecture.kernel,
        architecture.activation,
        architecture.batch_norm,
        scale=architecture.scale,
    )
    return nn.Sequential(convolution, activation(architecture.activation, architecture.width)), site


def _after(site: Site, stride: int) -> Site:
    """The place after a block: halved (rounded up) and twice as wide where it downsamples."""
    height, width = site.size
    return replace(site, channels=site.channels * stride, size=(-(-height // stride), -(-width // stride)), stride=1)


def _pool(site: Site, side: int) -> tuple[nn.Module, int]:
    height, width = site.size
    if height % side or width % side:
        raise ModelError(f"features of {height} x {width} cannot be pooled evenly to {side} x {side}")
    return nn.AvgPool2d((height // side, width // side)), site.channels * side * side
