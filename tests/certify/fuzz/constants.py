"""Constants of many kinds: ordinary, tiny, huge, zero, almost one, of unequal scales."""

import torch
from torch import Tensor

ORDINARY = ("normal",) * 6
KINDS = (
    *ORDINARY,
    *("zeros", "near one", "near one", "unequal scales", "some zero", "whole", "one alone"),
    *("1e-160", "1e-30", "1e30", "1e150"),
)
KEPT = ("buffer", "buffer", "parameter", "plain", "plain float64")


def constant(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor of one of the `KINDS`."""
    normal = 0.7 * torch.randn(shape, dtype=torch.float64, generator=generator)
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    match kind:
        case "normal":
            return normal
        case "zeros":
            return 0 * normal
        case "near one":  # products of such numbers cancel in the last bits
            return normal.sign() * (1 + 2.0**-30 * torch.floor(3 * uniform))
        case "unequal scales":
            return normal * 10 ** (12 * uniform - 6)
        case "some zero":
            return normal * (uniform < 0.5)
        case "whole":
            return torch.round(3 * normal)
        case "one alone":
            return (
                (torch.arange(normal.numel()) == int(3 * uniform.flatten()[0]) if normal.numel() else normal)
                .to(torch.float64)
                .reshape(shape)
            )
        case _:
            return normal * float(kind)
