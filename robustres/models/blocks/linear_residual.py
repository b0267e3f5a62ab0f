"""The linear residual block: the shortcut and the branch are one linear map, so their sum is bounded exactly."""

from torch import nn
from torch.nn.utils import parametrize

from robustres.errors import ModelError
from robustres.models.blocks.merged import MergedBlock
from robustres.models.blocks.site import Site
from robustres.models.constraints.operator_norm import Geometry, UnitResidual


class LinearResidualBlock(MergedBlock):
    """act(x + W x + b) with |I + W| = 1 by parametrisation (LiResNet, Hu et al. 2023).

    Lipschitz bound: |I + W| exactly, not 1 + |W|; at most 1 once settled.
    """

    def __init__(self, site: Site) -> None:
        if site.stride != 1:
            raise ModelError("a linear residual block keeps its size; downsample with the stem or another block")
        super().__init__(nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2), site)
        nn.init.normal_(self.branch.weight, std=0.3 / (site.kernel * site.channels**0.5))
        geometry = Geometry(site.shape, padding=site.kernel // 2)
        parametrize.register_parametrization(self.branch, "weight", UnitResidual(geometry, site.kernel))
