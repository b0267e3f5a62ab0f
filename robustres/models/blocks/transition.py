"""Halves the image size between constrained blocks, without stretching distances."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.orthogonal import SemiOrthogonal
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import norm_of
from robustres.models.constraints.activations import activation


class Transition(nn.Module):
    """act(W x + b), W a 2 x 2 convolution of stride 2 with orthonormal rows: (C, H, W) to (g C, H/2, W/2).

    growth: g from 1 to 4; at 4 no information is lost, since W is an orthogonal matrix on each window.
    Lipschitz constant: 1, since the windows do not overlap, so that W acts on each of them as one matrix (4 C to g C).
    """

    budget = 1.0

    def __init__(self, site: Site, growth: int = 2) -> None:
        super().__init__()
        if any(side % 2 for side in site.size):
            raise ModelError(
                f"constrained blocks can only downsample images with even sides, got {site.size[0]} x {site.size[1]}; "
                "change "
                "downsample or the stem's stride"
            )
        self.convolution = nn.Conv2d(site.channels, growth * site.channels, 2, 2)
        parametrize.register_parametrization(self.convolution, "weight", SemiOrthogonal())
        self.activation = activation(site.activation, growth * site.channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.convolution(x))
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|W| for the current weights on features of that shape."""
        return norm_of(self.convolution, input_shape)
