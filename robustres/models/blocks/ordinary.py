"""The standard blocks, without and with a shortcut. Nothing limits their Lipschitz constant."""

from torch import Tensor, nn

from robustres.models.blocks.site import Site
from robustres.models.constraints.activations import activation


def _convolution(site: Site, channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Convolution with zero padding that keeps the size (or halves it), then batch normalisation if requested."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, site.kernel, stride, site.kernel // 2, bias=not site.batch_norm)
    ]
    if site.batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def _branch(site: Site) -> nn.Sequential:
    out_channels = site.channels * site.stride
    return nn.Sequential(
        _convolution(site, site.channels, out_channels, site.stride),
        activation(site.activation, out_channels),
        _convolution(site, out_channels, out_channels),
    )


def _shortcut(site: Site) -> nn.Module:
    """The identity, or a strided 1 x 1 projection if the block halves the image."""
    if site.stride == 1:
        return nn.Identity()
    return nn.Conv2d(site.channels, site.channels * site.stride, 1, site.stride)


class PlainBlock(nn.Module):
    """act(V act(W x)): the same layers as an ordinary residual block, without the shortcut.

    Lipschitz bound: the product of the two operator norms.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.branch = _branch(site)
        self.activation = activation(site.activation, site.channels * site.stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.branch(x))
        return out


class ResidualBlock(nn.Module):
    """act(S x + V act(W x)), the post-activation block of He et al. (2016).

    Lipschitz bound: the joint bound of shortcut and branch, never above |S| + |V| |W|.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.branch = _branch(site)
        self.shortcut = _shortcut(site)
        self.activation = activation(site.activation, site.channels * site.stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.shortcut(x) + self.branch(x))
        return out


class PreActivationBlock(nn.Module):
    """S x + V act(W act(x)), the pre-activation block of He et al. (2016b).

    Lipschitz bound: |S| + |V| |W|, since the first activation is on the branch only.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(site.channels) if site.batch_norm else nn.Identity()
        self.before = nn.Sequential(norm, activation(site.activation, site.channels))
        self.branch = _branch(site)
        self.shortcut = _shortcut(site)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.branch(self.before(x))
        return out
