"""The residual blocks by name: the only place where a new block has to be registered."""

from collections.abc import Callable
from functools import partial

from torch import nn

from robustres.errors import ModelError
from robustres.models.blocks.backward_euler import BackwardEulerBlock
from robustres.models.blocks.convex_potential import cpl_block, sll_block
from robustres.models.blocks.euler import EulerBlock, InvertibleBlock
from robustres.models.blocks.highway import HighwayBlock
from robustres.models.blocks.joint_block import JointBlock, TextbookBlock
from robustres.models.blocks.linear_residual import LinearResidualBlock
from robustres.models.blocks.ordinary import PlainBlock, PreActivationBlock, ResidualBlock
from robustres.models.blocks.orthogonal import OrthogonalBlock
from robustres.models.blocks.orthogonal_convolution import OrthogonalConvolutionBlock
from robustres.models.blocks.scaled import LearnableScaledBlock, spectral_block
from robustres.models.blocks.shifted import ShiftBlock
from robustres.models.blocks.site import Site

BLOCKS: dict[str, Callable[[Site], nn.Module]] = {
    "plain": PlainBlock,
    "residual": ResidualBlock,
    "preactivation": PreActivationBlock,
    "highway": HighwayBlock,
    "linear": LinearResidualBlock,
    "orthogonal": OrthogonalBlock,
    "orthogonal-convolution": OrthogonalConvolutionBlock,
    "shift": ShiftBlock,
    "spectral": spectral_block,
    "scaled": LearnableScaledBlock,
    "convex": partial(LearnableScaledBlock, convex=True),
    "euler": EulerBlock,
    "invertible": InvertibleBlock,
    "backward-euler": BackwardEulerBlock,
    "cpl": cpl_block,
    "sll": sll_block,
    "joint": JointBlock,
    "textbook": TextbookBlock,
}
# Blocks whose layers are unconstrained; neither are their stem and head constrained.
ORDINARY = frozenset({"plain", "residual", "preactivation", "highway"})


def make_block(name: str, site: Site) -> nn.Module:
    """The block of that name at that site; ModelError lists the known names."""
    if name not in BLOCKS:
        raise ModelError(f"block must be one of {', '.join(BLOCKS)}, got {name!r}")
    return BLOCKS[name](site)
