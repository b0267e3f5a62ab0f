"""What the blocks act(x + W x) share: branch and shortcut are one linear map, kept by how W is parametrised."""

from torch import Tensor, nn

from robustres.certify.proof.bound import Bound
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import residual_norm_of
from robustres.models.constraints.activations import activation


class MergedBlock(nn.Module):
    """act(x + W x) with |I + W| <= 1; children say which convolution W is and parametrise its weight."""

    budget = 1.0

    def __init__(self, branch: nn.Conv2d, site: Site) -> None:
        super().__init__()
        self.branch = branch
        self.activation = activation(site.activation, site.channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(x + self.branch(x))
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|I + W| of the present weights on features of that shape."""
        return residual_norm_of(self.branch, input_shape)
