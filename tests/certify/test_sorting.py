"""Sorting inside a residual branch: recognised in every form, bounded jointly, compared with every pattern."""

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import Bound, certify, lipschitz
from robustres.certify.blocks import joint_search
from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.blocks.mask_ascent import mask_ascent
from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.graph.capture import capture
from robustres.certify.graph.network import Linear, Opaque
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.graph.simplify import simplified
from robustres.certify.maps.linear_map import Dense
from robustres.certify.maps.sector import GroupSort
from robustres.certify.maps.sorting import in_groups
from robustres.errors import UnsupportedOperationError
from robustres.models import MaxMin
from tests.certify.apply import Apply


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat((torch.minimum(a, b), torch.maximum(a, b)), 1)


def neighbours(x: Tensor) -> Tensor:
    a, b = x[:, ::2], x[:, 1::2]
    return torch.stack((torch.max(a, b), torch.min(a, b)), 2).flatten(1, 2)


def extremes_of_an_axis(x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (-1, 2))
    return torch.cat((pairs.amax(2), pairs.min(2).values), 1)


def extremes_of_the_first_axis(x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (2, -1))
    return torch.cat((pairs.max(1).values, pairs.min(1).values), 1)


def groups_of_four(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4)).sort(2).values.flatten(1, 2)


def strided_groups_of_four(x: Tensor) -> Tensor:
    return x.reshape(len(x), 4, -1, *x.shape[2:]).sort(1, descending=True).values.reshape(x.shape)


def all_channels(x: Tensor) -> Tensor:
    return x.sort(1).values


SORTS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        halves,
        neighbours,
        extremes_of_an_axis,
        extremes_of_the_first_axis,
        groups_of_four,
        strided_groups_of_four,
        all_channels,
    )
}


class Sorted(nn.Module):
    """x + V sort(W x), dense or convolutional."""

    def __init__(self, sort: Callable[[Tensor], Tensor], image: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Conv2d(3, 8, 3, padding=1) if image else nn.Linear(5, 8)
        self.outer = nn.Conv2d(8, 3, 3, padding=1) if image else nn.Linear(8, 5)
        self.sort = sort

    def forward(self, x: Tensor) -> Any:
        return x + self.outer(self.sort(self.inner(x)))


def steepest(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest Jacobian norm at random points, exactly."""
    exact = model.double().eval()
    points = 2 * torch.randn(1, *shape, dtype=torch.float64)
    size = points[0].numel()
    jacobians = torch.stack([torch.func.jacrev(exact)(point[None]).reshape(-1, size) for point in points])
    return float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("sort", [*SORTS.values(), MaxMin()], ids=[*SORTS, "MaxMin"])
def test_a_sort_in_a_branch_is_recognised_and_bounded_jointly(
    sort: Callable[[Tensor], Tensor], image: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Sorted(sort, image)
    shape = (3, 8, 8) if image else (5,)
    monkeypatch.setattr(joint_search, "DENSE_WIDTH", 0 if image else 100)
    (row,) = lipschitz(model, shape, effort=0.3, lower_steps=2).blocks
    assert row.kind == "residual (identity)"
    assert row.method.startswith("joint")
    assert steepest(model, shape) <= row.upper < 0.97 * row.textbook
    assert row.lower <= row.upper


@pytest.mark.parametrize("shape", [(8,), (8, 3, 2)], ids=str)
@pytest.mark.parametrize("sort", [*SORTS.values(), MaxMin()], ids=[*SORTS, "MaxMin"])
def test_the_recognised_groups_are_those_that_the_function_sorts(
    sort: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    network, refused = build_network(capture(Apply(sort), shape))
    assert network is not None, refused
    output = simplified(network)
    (place,) = [node for node in output.ordered() if isinstance(node.piece, Opaque)]
    assert isinstance(place.piece, Opaque)
    assert place.piece.sorts is not None
    x = torch.randn(50, *shape, dtype=torch.float64)
    before, after = place.inputs[0].piece, output.piece
    came = before.map(x) if isinstance(before, Linear) else x.reshape(50, *place.inputs[0].shape)
    went = after.map.adjoint(sort(x)) if isinstance(after, Linear) else sort(x).reshape(50, *place.shape)
    came, went = (in_groups(values, place.piece.sorts) for values in (came, went))
    assert torch.equal(came.sort(2).values, went.sort(2).values)
    assert bool((went.argsort(2) == went[:1].argsort(2)).all())


@pytest.mark.parametrize("groups", [GroupSort(2), GroupSort(2, "strided"), GroupSort(3), GroupSort(4)], ids=str)
def test_no_order_of_the_groups_exceeds_the_bound_and_the_ascent_finds_the_worst(groups: GroupSort) -> None:
    hidden = 4 if groups.size == 4 else 6
    generator = torch.Generator().manual_seed(3)
    S, W, V = (
        torch.randn(size, dtype=torch.float64, generator=generator) for size in ((4, 5), (hidden, 5), (4, hidden))
    )
    members = torch.arange(hidden).reshape(-1, groups.size)
    if groups.layout == "strided":
        members = torch.arange(hidden).reshape(groups.size, -1).T
    attained = []
    for orders in product(permutations(range(groups.size)), repeat=len(members)):
        order = torch.empty(hidden, dtype=torch.long)
        for group, permutation in zip(members, orders, strict=True):
            order[group] = group[list(permutation)]
        attained.append(float(torch.linalg.matrix_norm(S + V @ W[order], 2)))
    bound = joint_bound(Dense(S), Dense(W), Dense(V), slopes=groups, effort=0.5)
    block = ResidualBlock(Dense(S), (Dense(W), Dense(V)), (groups,))
    found = mask_ascent(block, steps=60, restarts=8).value
    assert max(attained) <= bound.upper < bound.candidates["textbook"]
    assert 0.9 * max(attained) <= found <= max(attained)


def test_every_order_is_attained_by_some_bias() -> None:
    """The pattern with the largest norm is a piece of a network with the same weights."""
    generator = torch.Generator().manual_seed(5)
    W, V = torch.randn(4, 3, dtype=torch.float64, generator=generator), torch.randn(3, 4, dtype=torch.float64)
    model = Sorted(neighbours, image=False)
    model.inner, model.outer = nn.Linear(3, 4), nn.Linear(4, 3)
    attained = []
    for flips in product((False, True), repeat=2):
        order = torch.tensor([index ^ int(flips[index // 2]) for index in range(4)])
        with torch.no_grad():
            model.inner.weight.copy_(W)
            model.outer.weight.copy_(V)
            model.inner.bias.copy_(torch.tensor([50.0 * (-1) ** (i + flips[i // 2]) for i in range(4)]))
        x = torch.randn(1, 3, dtype=torch.float64)
        there = torch.func.jacrev(model.double())(x).reshape(3, 3).detach()
        exact = torch.eye(3, dtype=torch.float64) + model.outer.weight @ model.inner.weight[order]
        torch.testing.assert_close(there, exact.detach())
        attained.append(float(torch.linalg.matrix_norm(there, 2)))
    assert max(attained) <= lipschitz(model, (3,), effort=0.05, lower_steps=0).upper


def test_a_partial_sort_is_not_part_of_the_joint_bound() -> None:
    model = Sorted(lambda x: torch.topk(x, 8, 1).values, image=False)
    assert lipschitz(model, (5,)).blocks[0].method.startswith("joint")
    part = Sorted(lambda x: torch.topk(x, 6, 1).values, image=False)
    part.outer = nn.Linear(6, 5)
    assert lipschitz(part, (5,)).blocks[0].method == "textbook"
    with pytest.raises(UnsupportedOperationError, match="in no fixed order"):
        lipschitz(Sorted(lambda x: torch.topk(x, 8, 1, sorted=False).values, image=False), (5,))


class Liar(nn.Module):
    """A module that states that it sorts pairs but reflects instead."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return Bound(1.0, 1.0, "word")

    def sorted_groups(self) -> GroupSort:
        return GroupSort(2)


def test_a_module_that_wrongly_states_that_it_sorts_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="which is not how it sorts"):
        lipschitz(Sorted(Liar(), image=False), (5,))


def test_max_and_min_of_different_pairs_are_not_a_sort() -> None:
    def crossed(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat((torch.maximum(a, b), torch.minimum(a, b.flip(1))), 1)

    model = Sorted(crossed, image=False)
    row = lipschitz(model, (5,)).blocks[0]
    assert row.method == "textbook"
    assert steepest(model, (5,)) <= row.upper


class Split(nn.Module):
    """x + V relu(first half of W x) + second half of W x: two consecutive linear maps inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(5, 10), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Any:
        first, second = self.inner(x).chunk(2, 1)
        return x + self.outer(torch.relu(first)) + second


def test_consecutive_linear_maps_inside_a_branch_are_composed() -> None:
    model = Split()
    (row,) = lipschitz(model, (5,), effort=0.05).blocks
    assert row.method.startswith("joint")
    assert steepest(model, (5,)) <= row.upper < row.textbook


class Classifier(nn.Module):
    """A block with a sort between two dense layers, and a sort after it."""

    def __init__(self, sort: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.sort = Sorted(sort, image=False), sort
        self.widen, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.sort(self.widen(self.block(x))))


@pytest.mark.parametrize("sort", [*SORTS.values(), MaxMin()], ids=[*SORTS, "MaxMin"])
def test_the_radii_of_networks_that_sort_hold_in_both_precisions(sort: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    model = Classifier(sort).eval()
    x = torch.rand(4, 5)
    report = lipschitz(model, (5,), effort=0.05, lower_steps=2)
    double = certify(model, x, report=report)
    single = certify(model, x, report=report, dtype=torch.float32)
    assert bool((double.radius > single.radius).all())
    assert bool((single.radius > 0.9 * double.radius).all())
    directions = nn.functional.normalize(torch.randn(2000, 4, 5), dim=2).double()
    near = (x.double() + directions * double.radius[:, None]).float()
    assert bool((model(near.reshape(-1, 5)).argmax(1).reshape(-1, 4) == double.prediction).all())
