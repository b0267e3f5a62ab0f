"""The matrix of a linear operation, found by applying it to one unit vector after another."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from robustres.certify.graph.call import Call, NotCoveredError
from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import Dense, Shape
from robustres.numerics import gamma

LARGEST_MATRIX = 2**24  # largest number of entries of a matrix found in this way
TRIED = 16  # roundings of an entry found in this way: a product of a few weights


def by_trying(call: Call, source: Node, *, without: Sequence[str] = ()) -> Node:
    """An operation that is linear in `source` and a sum of products of constants, as its matrix, if that is small.

    Its entries are charged with the rounding errors of sums of the absolute values of the same products.
    without: arguments that add a constant, which are left out.
    """
    bare = Call(call.origin, {**call.arguments, **dict.fromkeys(without)}, call.captured)
    constants = [value for value in tree_leaves(dict(bare.arguments)) if isinstance(value, Tensor)]

    def image(values: Tensor) -> Tensor:
        answer: Tensor = bare.evaluate({source: values})
        return answer

    matrix = matrix_of(call, source, image)
    magnitude, terms = None, sum(value.numel() for value in constants)
    if constants:
        bare = Call(call.origin, tree_map(_absolute, dict(bare.arguments), is_leaf=_is_node), call.captured)
        whole = matrix_of(call, source, image) * (1 + gamma(TRIED + terms))
        exact = torch.equal(whole, matrix.abs() * (1 + gamma(TRIED + terms)))
        magnitude = None if exact else whole.abs()
    seen = TRIED if magnitude is None else TRIED + terms
    return call.linear(source, Dense(matrix, source.shape, call.out_shape, seen=seen, magnitude=magnitude))


def _is_node(value: Any) -> bool:
    return isinstance(value, Node)


def _absolute(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _by_sample(image: Callable[[Tensor], Tensor], shape: Shape, device: torch.device) -> bool:
    """Whether a linear map of a batch acts on every sample separately and equally, checked on a random batch."""
    sample = torch.randn(shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    images = []
    for place in range(BATCH):
        batch = torch.zeros(shape, dtype=torch.float64, device=device)
        batch[place] = sample
        answer = image(batch)
        if bool(torch.cat([answer[:place], answer[place + 1 :]]).any()):
            return False
        images.append(answer[place])
    return all(torch.equal(images[0], other) for other in images[1:])


def matrix_of(call: Call, source: Node, image: Callable[[Tensor], Tensor]) -> Tensor:
    """(out, in): the matrix of a linear map of batches (BATCH, *source.shape) of samples, a few columns at a time."""
    if not _by_sample(image, (BATCH, *source.shape), call.device):
        raise NotCoveredError("with an added constant, or one that differs between the samples of a batch")
    size, device = math.prod(source.shape), call.device
    entries = size * math.prod(call.out_shape)
    if entries > LARGEST_MATRIX:
        raise NotCoveredError(f"whose matrix of {entries} entries is larger than {LARGEST_MATRIX}")
    columns = []
    for start in range(0, size, BATCH):
        places = torch.arange(start, min(start + BATCH, size), device=device)
        basis = torch.zeros(BATCH, size, dtype=torch.float64, device=device)
        basis[torch.arange(len(places), device=device), places] = 1.0
        columns.append(image(basis.reshape(BATCH, *source.shape))[: len(places)].reshape(len(places), -1))
    return torch.cat(columns).T.contiguous()
