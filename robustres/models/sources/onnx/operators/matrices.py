"""Matrix products; a product with a known matrix is a dense layer."""

import math

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import MOST_WORK


@operator("Gemm", 7, 9, 11, 13)
def gemm(call: Call) -> Tensor:
    """alpha A B + beta C, with A and B optionally transposed."""
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    turned = bool(call.attribute("transB", 0))
    known = call.place is None and call.known(1) and (not call.given(2) or call.known(2))
    if known and not call.attribute("transA", 0):
        weight = call.constant(1, "a weight")
        bias = call.constant(2, "a bias") if call.given(2) else None
        if weight.ndim == 2 and (bias is None or _is_row(bias, weight.shape[0 if turned else 1])):
            return _dense(call, _times(weight if turned else weight.T, alpha), _times(bias, beta))
    left, right = call.tensor(0), call.tensor(1)
    left = torch.transpose(left, 0, 1) if call.attribute("transA", 0) else left
    product = torch.matmul(left, torch.transpose(right, 0, 1) if turned else right)
    product = product if alpha == 1 else torch.mul(product, alpha)
    if not call.given(2):
        return product
    return torch.add(product, call.tensor(2) if beta == 1 else torch.mul(call.tensor(2), beta))


@operator("MatMul", 1, 9, 13)
def matmul(call: Call) -> Tensor:
    """A B with the semantics of NumPy."""
    left = call.tensor(0)
    if call.place is None and call.known(1) and left.ndim >= 2:
        weight = call.constant(1, "a weight")
        if weight.ndim == 2:
            return _dense(call, weight.T, None)
    return torch.matmul(left, call.tensor(1))


@operator("Einsum", 12)
def einsum(call: Call) -> Tensor:
    """Sums of products in Einstein notation."""
    equation = call.attribute("equation", "")
    terms = [call.tensor(position) for position in range(len(call))]
    sides = {
        letter: side
        for term, letters in zip(terms, equation.replace(" ", "").split("->")[0].split(","), strict=True)
        for letter, side in zip(letters, term.shape, strict=False)
        if "." not in letters and isinstance(side, int)
    }
    call.recorder.work += math.prod(sides.values())
    if call.recorder.work > MOST_WORK:
        raise ModelError(f"needs more than {MOST_WORK:.2g} multiplications for one image")
    return torch.einsum(equation, *terms)


def _is_row(bias: Tensor, width: int) -> bool:
    """Whether the bias adds the same row to every row of a matrix."""
    return bias.numel() in (1, width) and tuple(bias.shape[:-1]) in ((), (1,))


def _times(tensor: Tensor | None, factor: float) -> Tensor | None:
    return tensor if tensor is None or factor == 1 else tensor * factor


def _dense(call: Call, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T + b as a layer."""
    assert weight is not None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.expand(1, weight.shape[0])[0].clone() if bias.numel() == 1 else bias.reshape(-1))
    return call.module(layer)
