"""Random small maps for property-based tests."""

from fractions import Fraction

import torch
from hypothesis import assume
from hypothesis import strategies as st

from robustres.certify.fourier.torus import Embedding, Torus
from robustres.certify.maps.convolution import Convolution
from robustres.errors import InputError


@st.composite
def convolutions(draw: st.DrawFn, *, circular: bool = False, most_groups: int = 3) -> Convolution:
    """A random small convolution: asymmetric and oversized padding, even kernels, strides beyond the kernel, groups."""
    groups = draw(st.integers(1, most_groups))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel, stride, dilation, image = draw(two(1, 4)), draw(two(1, 4)), draw(two(1, 2)), draw(two(1, 8))
    padding = (draw(two(0, 3)), draw(two(0, 3)))
    wraps = circular and draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(c_out, c_in // groups, *kernel, dtype=torch.float64, generator=generator)
    try:
        map_ = Convolution(weight, (c_in, *image), stride, padding, dilation, groups, wraps)
    except InputError:
        assume(False)
    assume(not wraps or all(max(pads) <= side for pads, side in zip(padding, image, strict=True)))
    return map_


def every_torus(embedding: Embedding) -> list[Torus]:
    """The smallest torus, those up to two points larger, and on each side no twist, a half one and a third."""
    phases = (Fraction(0), Fraction(1, 2), Fraction(1, 3))
    axes = [
        [(points, Fraction(0))] if exact else [(points + more, phase) for more in range(3) for phase in phases]
        for points, exact in zip(embedding.points, embedding.exact, strict=True)
    ]
    return [Torus((rows, columns), (one, other)) for rows, one in axes[0] for columns, other in axes[1]]
