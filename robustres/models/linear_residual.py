"""The linear residual block: the shortcut and the branch are one linear map, so their sum is bounded exactly."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.certify.bound import Bound
from robustres.errors import ModelError
from robustres.models.activations import activation
from robustres.models.operator_norm import Geometry, UnitResidual
from robustres.models.site import Site
from robustres.models.stated import residual_norm_of


class LinearResidualBlock(nn.Module):
    """act(x + W x + b) with |I + W| = 1 by parametrisation (LiResNet, Hu et al. 2023).

    Lipschitz bound: |I + W| exactly, not 1 + |W|; at most 1 once settled.
    """

    budget = 1.0

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.stride != 1:
            raise ModelError("a linear residual block keeps its size; downsample with the stem or another block")
        self.branch = nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2)
        nn.init.normal_(self.branch.weight, std=0.3 / (site.kernel * site.channels**0.5))
        geometry = Geometry(site.shape, padding=site.kernel // 2)
        parametrize.register_parametrization(self.branch, "weight", UnitResidual(geometry, site.kernel))
        self.activation = activation(site.activation, site.channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(x + self.branch(x))
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|I + W| of the present weights on features of that shape."""
        return residual_norm_of(self.branch, input_shape)
