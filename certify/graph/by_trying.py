"""The matrix of a linear operation, found by applying it to one unit vector after another."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustres.certify.graph.call import Call, NotCoveredError
from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import Dense, Shape

LARGEST_MATRIX = 2**24  # largest number of entries of a matrix found in this way
TRIED = 16  # roundings of an entry found in this way: a product of a few weights


def by_trying(call: Call, source: Node, *, without: Sequence[str] = ()) -> Node:
    """A linear operation as its matrix, if that is small.

    without: arguments that add a constant, which are left out.
    """
    bare = Call(call.origin, {**call.arguments, **dict.fromkeys(without)}, call.captured)

    def image(values: Tensor) -> Tensor:
        answer: Tensor = bare.evaluate({source: values})
        return answer

    return as_matrix(call, source, image, seen=TRIED)


def as_matrix(call: Call, source: Node, image: Callable[[Tensor], Tensor], *, seen: int = 0) -> Node:
    """The operation as the matrix of a linear map `image` of batches; seen: roundings of its entries."""
    entries = math.prod(source.shape) * math.prod(call.out_shape)
    if entries > LARGEST_MATRIX:
        raise NotCoveredError(f"whose matrix of {entries} entries is larger than {LARGEST_MATRIX}")
    matrix = _matrix_of(image, source.shape, call.device)
    return call.linear(source, Dense(matrix, source.shape, call.out_shape, seen=seen))


def by_sample(image: Callable[[Tensor], Tensor], shape: Shape, device: torch.device) -> bool:
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


def _matrix_of(image: Callable[[Tensor], Tensor], shape: Shape, device: torch.device) -> Tensor:
    """(out, in): the matrix of a linear map of batches (BATCH, *shape) of samples, a few columns at a time."""
    size = math.prod(shape)
    columns = []
    for start in range(0, size, BATCH):
        places = torch.arange(start, min(start + BATCH, size), device=device)
        basis = torch.zeros(BATCH, size, dtype=torch.float64, device=device)
        basis[torch.arange(len(places), device=device), places] = 1.0
        columns.append(image(basis.reshape(BATCH, *shape))[: len(places)].reshape(len(places), -1))
    return torch.cat(columns).T.contiguous()
