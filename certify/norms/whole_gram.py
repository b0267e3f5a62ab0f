"""The Gram matrix of a zero-padded convolution on its own image, without the loss of an embedding in a torus.

Embedding an image in a torus loosens the bound if the image is small compared with the kernel. The whole matrix is a
sum over the taps of P_a (x) Q_b (x) K_ab, where P and Q are the 0/1 matrices of the position on an axis that each
output reads. Its Gram matrix is a sum of Kronecker products of K K^T with P P^T and Q Q^T, or of the transposes, and is
cheap compared with its factorisation.
"""

import math
from itertools import product

import torch
from torch import Tensor

from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.rounding import absolute_norm
from robustres.certify.proof.largest_singular_value import proved_top
from robustres.numerics import gamma, rounded_up

MARGINS = (1e-6, 1e-4, 1e-3, 1e-2)
RITZ_STEPS = 50


def whole_gram_bound(convolution: Convolution, *, seconds: float) -> float | None:
    """A deterministic upper bound on the norm of a `normalised` convolution, usually within 1e-6; None if it takes more
    than the given seconds of a nominal core, or if the convolution has groups or another padding than zeros."""
    if convolution.groups > 1 or convolution.circular or nominal_seconds(convolution) > seconds:
        return None
    gram, error = whole_gram(convolution)
    return rounded_up(math.sqrt(proved_top(gram, error, margins=MARGINS, steps=RITZ_STEPS)), 4)


def nominal_seconds(convolution: Convolution) -> float:
    """Seconds of two factorisations and the products of the kernel on a core of 2e10 operations per second."""
    width = min(convolution.in_size, convolution.out_size)
    products = 2 * math.prod(convolution.weight.shape[2:]) ** 2 * min(convolution.weight.shape[:2]) ** 3
    return 0.02 + (2 * width**3 / 3 + 400 * width**2 + products) / 2e10


def whole_gram(convolution: Convolution) -> tuple[Tensor, float]:
    """The smaller of A A^T and A^T A, ordered by position and channel, and a bound on its error in the spectral
    norm."""
    weight, of_outputs = convolution.weight.detach(), convolution.out_size <= convolution.in_size
    axes = [_places(convolution, axis) for axis in (0, 1)]
    if not of_outputs:
        axes = [places.mT for places in axes]
    channels = weight.shape[0] if of_outputs else weight.shape[1]
    positions = axes[0].shape[1] * axes[1].shape[1]
    gram = weight.new_zeros(positions, channels, positions, channels)
    taps = list(product(range(weight.shape[2]), range(weight.shape[3])))
    for (a, b), (c, d) in product(taps, taps):
        meetings = torch.kron(axes[0][a] @ axes[0][c].mT, axes[1][b] @ axes[1][d].mT)
        left, right = weight[:, :, a, b], weight[:, :, c, d]
        block = left @ right.mT if of_outputs else left.mT @ right
        rows, columns = meetings.nonzero(as_tuple=True)
        gram[rows, :, columns] += block
    size = absolute_norm(convolution) ** 2 * (1 + gamma(8 + 2 * len(taps) * sum(weight.shape[:2])))
    roundings = 2 * (max(weight.shape[:2]) + len(taps) ** 2 + 8 + 2 * convolution.seen)
    return gram.reshape(positions * channels, -1), gamma(roundings) * size


def _places(convolution: Convolution, axis: int) -> Tensor:
    """(taps, outputs, inputs): 1 where an output reads an input through a tap."""
    inputs, outputs = convolution.in_shape[1 + axis], convolution.out_shape[1 + axis]
    taps = torch.arange(convolution.weight.shape[2 + axis])[:, None] * convolution.dilation[axis]
    read = torch.arange(outputs) * convolution.stride[axis] + taps - convolution.padding[axis][0]
    found: Tensor = (read[..., None] == torch.arange(inputs)).to(convolution.weight)
    return found
