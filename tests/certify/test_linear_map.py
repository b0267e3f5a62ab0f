"""Every linear map against torch's operator, its transpose and its matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from robustres.certify.maps.convolution import Convolution, Transposed, padded, separable
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Sum
from robustres.errors import InputError
from robustres.models.blocks.stated import map_of


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


MAPS: dict[str, LinearMap] = {
    "dense": Dense(normal(3, 5)),
    "flatten": Identity((2, 3, 4), (24,)),
    "channel scale": Diagonal(normal(3), (3, 4, 5)),
    "separable": separable(normal(3, 4), normal(6, 5), 2),
    "scaled": -0.5 * Dense(normal(4, 2)),
    "grouped": Convolution(normal(4, 3, 3, 2), (6, 7, 5), (2, 1), ((0, 2), (1, 0)), (1, 2), 2),
    "circular": Convolution(normal(2, 2, 3, 3), (2, 5, 4), padding=((1, 1), (2, 0)), circular=True),
    "reflect": padded((2, 5, 4), ((1, 1), (2, 0)), "reflect"),
    "replicate": padded((2, 5, 4), ((2, 2), (2, 2)), "replicate"),
    "one pixel": Convolution(normal(3, 2, 3, 3), (2, 1, 1), padding=1),
    "transposed": Transposed(Convolution(normal(4, 3, 3, 2), (3, 10, 15), (2, 3), 1)),
    "transposed, grouped and dilated": Transposed(Convolution(normal(4, 2, 2, 2), (4, 5, 5), dilation=2, groups=2)),
    "composition": Dense(normal(5, 24)) @ Identity((2, 3, 4), (24,)),
    "sum": Sum((Identity((2, 3, 3)), Convolution(normal(2, 2, 3, 3), (2, 3, 3), padding=1))),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    map_ = MAPS[name]
    x, y = normal(2, *map_.in_shape), normal(2, *map_.out_shape)
    assert map_(x).shape == y.shape
    torch.testing.assert_close((map_(x) * y).sum(), (x * map_.adjoint(y)).sum())


@pytest.mark.parametrize("name", MAPS)
def test_the_dense_matrix_multiplies_like_the_map(name: str) -> None:
    map_ = MAPS[name]
    x = normal(3, *map_.in_shape)
    torch.testing.assert_close(x.flatten(1) @ map_.dense().T, map_(x).flatten(1))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["zeros", "circular", "replicate", "reflect"]),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
)
def test_a_convolution_computes_what_torch_computes(
    mode: str, groups: int, stride: int, pad: int, dilation: int
) -> None:
    layer = torch.nn.Conv2d(2, 4, 3, stride, pad, dilation, groups, bias=False, padding_mode=mode, dtype=torch.float64)
    x = normal(2, 2, 7, 6)
    map_ = map_of(layer, (2, 7, 6))
    torch.testing.assert_close(map_(x), layer(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_computes_what_torch_computes(stride: int) -> None:
    weight = normal(4, 3, 3, 3)
    map_ = Transposed(Convolution(weight, (3, 5 * stride, 6 * stride), stride, 1))
    x = normal(2, 4, 5, 6)
    expected = functional.conv_transpose2d(x, weight, stride=stride, padding=1, output_padding=stride - 1)
    torch.testing.assert_close(map_(x), expected)


def test_operators_compose_in_the_order_of_mathematics() -> None:
    inner, outer = Dense(normal(4, 3)), Dense(normal(2, 4))
    torch.testing.assert_close((outer @ inner).dense(), outer.matrix @ inner.matrix)
    torch.testing.assert_close((2.0 * inner + inner).dense(), 3 * inner.matrix)
    assert isinstance(outer @ inner @ Identity((3,)), Composition)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        Dense(torch.tensor([[1.0, bad]]))
    with pytest.raises(InputError, match="NaN or infinite"):
        Convolution(torch.full((1, 1, 3, 3), bad), (1, 4, 4))
    with pytest.raises(InputError, match="NaN or infinite"):
        Diagonal(torch.tensor([bad]), (1, 4, 4))


def test_shapes_that_do_not_fit_are_refused_with_both_shapes() -> None:
    with pytest.raises(InputError, match="cannot be followed"):
        Dense(normal(2, 3)) @ Dense(normal(4, 2))
    with pytest.raises(InputError, match="cannot be added"):
        Dense(normal(2, 3)) + Dense(normal(3, 2))
    with pytest.raises(InputError, match="larger than the padded image"):
        Convolution(normal(1, 1, 5, 5), (1, 3, 3))
