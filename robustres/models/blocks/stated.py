"""The bounds that the blocks state about themselves: for their current weights, from the certifier's norms."""

from torch import nn

from robustres.certify.maps.convolution import Convolution, both_sides, padded, pair
from robustres.certify.maps.linear_map import Dense, Identity, LinearMap
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.numerics import rounded_up


def map_of(layer: nn.Module, input_shape: tuple[int, ...]) -> LinearMap:
    """An nn.Conv2d at one image size, or an nn.Linear, as the certifier's linear map; ModelError for other layers."""
    if isinstance(layer, nn.Linear):
        return Dense(layer.weight.detach())
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        raise ModelError(
            f"only nn.Linear and nn.Conv2d with numeric padding are supported here, got {type(layer).__name__}"
        )
    weight, stride, dilation = layer.weight.detach(), pair(layer.stride), pair(layer.dilation)
    shape, padding, mode = tuple(input_shape), both_sides(layer.padding), layer.padding_mode
    if mode in ("zeros", "circular"):
        return Convolution(weight, shape, stride, padding, dilation, layer.groups, mode == "circular")
    wider = padded(shape, padding, mode, weight.device)
    return Convolution(weight, wider.out_shape, stride, dilation=dilation, groups=layer.groups) @ wider


def norm_of(convolution: nn.Module, input_shape: tuple[int, ...]) -> Bound:
    """The true operator norm of a convolution at one image size."""
    return spectral_norm(map_of(convolution, input_shape))


def residual_norm_of(convolution: nn.Module, input_shape: tuple[int, ...]) -> Bound:
    """The norm of I + W."""
    total: LinearMap = Identity(tuple(input_shape)) + map_of(convolution, input_shape)
    return spectral_norm(total)


def textbook_bound(
    alpha: float, beta: float, inner: nn.Module, outer: nn.Module, input_shape: tuple[int, ...]
) -> Bound:
    """|alpha| + |beta| |V| |W| for a branch V act(W x) of slopes in [0, 1] between layers of one size.

    The lower end is 0: the triangle inequality alone proves no lower bound.
    """
    first, second = norm_of(inner, input_shape), norm_of(outer, input_shape)
    upper = rounded_up(abs(alpha) + abs(beta) * first.upper * second.upper, 4)
    guarantee = first.guarantee & second.guarantee
    return Bound(0.0, upper, "|alpha| + |beta| |V| |W|", guarantee, first.seconds + second.seconds)
