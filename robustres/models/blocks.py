"""The residual blocks by name: the one place that a new block is added to."""

from collections.abc import Callable

from torch import nn

from robustres.errors import ModelError
from robustres.models.linear_residual import LinearResidualBlock
from robustres.models.ordinary import PlainBlock, PreActivationBlock, ResidualBlock
from robustres.models.orthogonal import OrthogonalBlock
from robustres.models.site import Site

BLOCKS: dict[str, Callable[[Site], nn.Module]] = {
    "plain": PlainBlock,
    "residual": ResidualBlock,
    "preactivation": PreActivationBlock,
    "linear": LinearResidualBlock,
    "orthogonal": OrthogonalBlock,
}
# Blocks whose layers are not constrained: their stem and head are not either.
ORDINARY = frozenset({"plain", "residual", "preactivation"})


def make_block(name: str, site: Site) -> nn.Module:
    """The block of that name at that place; ModelError lists the known names."""
    if name not in BLOCKS:
        raise ModelError(f"block must be one of {', '.join(BLOCKS)}, got {name!r}")
    return BLOCKS[name](site)
