"""Explicit Euler steps x + h F(x), and the same map as an invertible block."""

from torch import Tensor

from robustres.errors import ModelError
from robustres.models.blocks.scaled import ScaledBlock
from robustres.models.blocks.site import Site


class EulerBlock(ScaledBlock):
    """x + h F(x) with |F| <= 1, h the site's scale: one step of dx/dt = F(x).

    Lipschitz bound: 1 + h |V| |W|, at most `budget` = 1 + h.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site, alpha=1.0, beta=site.scale)


class InvertibleBlock(EulerBlock):
    """x + c F(x) with |F| <= 1 and c < 1: invertible (i-ResNet, Behrmann et al. 2019).

    Lipschitz bound: 1 + c |V| |W|; distances shrink at most by the factor 1 - c |V| |W| (`lower_bound`).
    """

    def __init__(self, site: Site) -> None:
        if not 0 < site.scale < 1:
            raise ModelError(f"an invertible block needs a scale in (0, 1), got {site.scale:g}")
        super().__init__(site)

    def inverse(self, y: Tensor, *, tolerance: float = 1e-6, most_steps: int = 1000) -> Tensor:
        """The x with block(x) = y, by the fixed-point iteration x <- y - c F(x), which contracts by c.

        tolerance: on the largest residual |x + c F(x) - y| of any sample; the error of x is at most that / (1 - c).
        Raises ModelError if it is not reached, for example in float32 with a tolerance below its rounding error.
        """
        x = y
        for _ in range(most_steps):
            residual = y - self(x)
            if float(residual.detach().flatten(1).norm(dim=1).max()) <= tolerance:
                return x
            x = x + residual
        raise ModelError(f"the inverse did not reach the tolerance {tolerance:g} in {most_steps} steps; raise it")

    def lower_bound(self, input_shape: tuple[int, ...]) -> float:
        """A number at or below |block(x) - block(x')| / |x - x'| for every pair of inputs."""
        return max(0.0, 2 - self.stated_bound(input_shape).upper)
