"""The highway block, for comparison: its gate multiplies the input, so it has no global Lipschitz bound."""

import torch
from torch import Tensor, nn

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import norm_of
from robustres.models.constraints.activations import activation
from robustres.numerics import rounded_up


class HighwayBlock(nn.Module):
    """t(x) H(x) + (1 - t(x)) x with t = sigmoid(G x + g), H = act(W x + b) (Srivastava et al. 2015).

    Not globally Lipschitz: the gate's derivative multiplies H(x) - x, which grows with x. The certifier refuses it;
    `bound_on_ball` holds for inputs of bounded norm only.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.stride != 1:
            raise ModelError("a highway block keeps its size; downsample with the stem or another block")
        self.gate = nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2)
        self.inner = nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2)
        self.activation = activation(site.activation, site.channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        out: Tensor = gate * self.activation(self.inner(x)) + (1 - gate) * x
        return out

    def bound_on_ball(self, input_shape: tuple[int, ...], radius: float) -> Bound:
        """A bound on the Lipschitz constant over inputs with |x| <= radius.

        With fixed gates the block is a coordinatewise convex combination of H and the identity, so it expands at most
        by sqrt(|W|^2 + 1); the change of the gates adds |G| / 4 times the largest coordinate of H(x) - x, at most
        |act(b)| + |W| radius + radius.
        """
        if not radius > 0:
            raise ModelError(f"the ball's radius must be positive, got {radius:g}")
        inner, gate = norm_of(self.inner, input_shape), norm_of(self.gate, input_shape)
        with torch.no_grad():
            zero = torch.zeros(1, *input_shape, dtype=torch.float64, device=self.inner.weight.device)
            bias = self.inner.bias
            offset = zero if bias is None else zero + bias.double()[:, None, None]
            start = float(self.activation(offset).norm())
        spread = start + (inner.upper + 1) * radius
        upper = rounded_up((inner.upper**2 + 1) ** 0.5 + gate.upper / 4 * spread, 16 + zero.numel())
        return Bound(0.0, upper, f"on the ball of radius {radius:g}", inner.guarantee & gate.guarantee)
