"""Rules for convolutions, dense layers, products with constant tensors, and batch normalisation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustres.certify.graph.by_trying import by_trying, matrix_of
from robustres.certify.graph.call import Call, NotCoveredError, numbers
from robustres.certify.graph.network import Node, Product
from robustres.certify.graph.registry import PRODUCT, rule
from robustres.certify.graph.rules_arithmetic import combination
from robustres.certify.maps.convolution import Convolution, Padding, Transposed, along_axis, both_sides
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Shape


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def convolution(call: Call) -> Node:
    """A convolution with zero padding, or its transpose; one-dimensional inputs are treated as images of height 1."""
    source, weight = call.node("input"), _weight(call, "weight")
    rank = weight.ndim - 2
    if len(source.shape) != rank + 1:
        raise NotCoveredError("of an input without a batch axis")
    if rank == 3:
        node = by_trying(call, source, without=("bias",))
    else:
        transposed = call.arguments.get("transposed") or "conv_transpose" in call.name
        inner = (_transposed if transposed else _plain)(call, weight[:, :, None] if rank == 1 else weight, source.shape)
        node = call.linear(source, reshaped(inner, source.shape, call.out_shape))
    bias = call.constant("bias")
    return call.plus(node, None if bias is None else bias.reshape(-1, *[1] * rank))


def _plain(call: Call, kernel: Tensor, shape: Shape) -> LinearMap:
    stride, dilation = (_two(call, name, 1) for name in ("stride", "dilation"))
    return Convolution(kernel, image_of(shape), stride, _padding(call, kernel, dilation), dilation, call["groups"])


def _transposed(call: Call, kernel: Tensor, shape: Shape) -> LinearMap:
    """If the output is padded by the stride or more, zeros appended to the input have the same effect."""
    stride, dilation, padding = _two(call, "stride", 1), _two(call, "dilation", 1), both_sides(_two(call, "padding", 0))
    inner = Transposed(Convolution(kernel, image_of(call.out_shape), stride, padding, dilation, call["groups"]))
    image, wider = image_of(shape), inner.in_shape
    if wider == image:
        return inner
    numbers = torch.arange(math.prod(image), device=kernel.device).reshape(image)
    index = torch.nn.functional.pad(numbers, (0, wider[2] - image[2], 0, wider[1] - image[1]), value=-1)
    return Composition([Selection(index.flatten(), image, wider), inner])


@rule("linear")
def dense(call: Call) -> Node:
    """x W^T + b on the last axis."""
    node = on_last_axis(call, call.node("input"), _weight(call, "weight"))
    return call.plus(node, call.constant("bias"))


@rule("addmm", "addmv", "baddbmm", "addbmm")
def product_with_bias(call: Call) -> Node:
    """beta self + alpha (product)."""
    names = [name for name in ("mat1", "mat2", "mat", "vec", "batch1", "batch2") if name in call.arguments]
    left, right = (call[name] for name in names)
    depends = isinstance(left, Node) or isinstance(right, Node)
    product: Any = _product(call, left, right) if depends else left.to(torch.float64) @ right.to(torch.float64)
    return combination(call, [(call["self"], float(call["beta"])), (product, float(call["alpha"]))])


@rule("mm", "matmul", "bmm", "mv", "dot", "vdot")
def matrix_product(call: Call) -> Node:
    """A matrix product of a value and a constant, on either side."""
    other = next(name for name in ("mat2", "other", "vec", "tensor") if name in call.arguments)
    return _product(call, call["self"], call[other])


def _product(call: Call, left: Any, right: Any) -> Node:
    """The matrix product in Einstein notation: leading axes, then rows and columns."""
    ranks = [len(value.shape) + 1 if isinstance(value, Node) else value.ndim for value in (left, right)]
    if isinstance(left, Node) and isinstance(right, Node):
        if min(ranks) < 3:
            raise NotCoveredError(PRODUCT)
        letters = "abcdefgh"[: max(ranks) - 3]
        sides = [letters[len(letters) - rank + 3 :] + end for rank, end in zip(ranks, ("pk", "kq"), strict=True)]
        return product_of_states(call, (left, right), sides, letters + "pq")
    leading = "uvwxyz"[: max(max(ranks) - 2, 0)]
    rows = leading[len(leading) - max(ranks[0] - 2, 0) :] + ("pk" if ranks[0] > 1 else "k")
    columns = leading[len(leading) - max(ranks[1] - 2, 0) :] + ("kq" if ranks[1] > 1 else "k")
    answer = leading + ("p" if ranks[0] > 1 else "") + ("q" if ranks[1] > 1 else "")
    return contraction(call, [left, right], [rows, columns], answer)


@rule("tensordot")
def tensor_product(call: Call) -> Node:
    """A sum over pairs of axes of the product of a value and a constant."""
    values, names = [call["self"], call["other"]], ["abcdefgh", "ijklmnop"]
    if all(isinstance(value, Node) for value in values):
        raise NotCoveredError(PRODUCT)
    ranks = [len(value.shape) + 1 if isinstance(value, Node) else value.ndim for value in values]
    left, right = (list(letters[:rank]) for letters, rank in zip(names, ranks, strict=True))
    for first, second in zip(call["dims_self"], call["dims_other"], strict=True):
        right[second] = left[first]
    answer = [letter for letter in (*left, *right) if (letter in left) != (letter in right)]
    return contraction(call, values, ["".join(left), "".join(right)], "".join(answer))


@rule("einsum")
def einstein_sum(call: Call) -> Node:
    """A sum over letters of the product of a value and a constant."""
    operands = list(call["tensors"])
    terms, arrow, answer = str(call["equation"]).replace(" ", "").partition("->")
    letters = terms.split(",")
    plain = arrow and "." not in terms and all(len(set(part)) == len(part) for part in (*letters, answer))
    depending = sum(isinstance(operand, Node) for operand in operands)
    if call.captured.near_an_image and depending == len(operands) == 2:
        if not plain or {part[:1] for part in (*letters, answer)} != {answer[:1]}:
            raise NotCoveredError("of two values that both depend on the input, in other than plain letters")
        return product_of_states(call, operands, [part[1:] for part in letters], answer[1:])
    if depending != 1:
        raise NotCoveredError(PRODUCT)
    if len(operands) != 2 or not plain:
        return by_trying(call, call.states()[0])
    return contraction(call, operands, letters, answer)


def product_of_states(call: Call, states: Sequence[Node], letters: Sequence[str], answer: str) -> Node:
    """The sum, over the letters missing in the output, of the products of two values; letters of unbatched axes.

    Both are laid beside each other, so every product of two numbers is one coordinate.
    """
    if not call.captured.near_an_image:
        raise NotCoveredError(PRODUCT)
    sides: dict[str, int] = {}
    for state, own in zip(states, letters, strict=True):
        for letter, side in zip(own, state.shape, strict=True):
            sides[letter] = max(side, sides.get(letter, 1))
    gone = "".join(letter for letter in sides if letter not in answer)
    whole = answer + gone
    shape = tuple(sides[letter] for letter in whole)

    def laid(numbers: Tensor, own: str) -> Tensor:
        order = [letter for letter in whole if letter in own]
        numbers = numbers.permute([own.index(letter) for letter in order])
        return numbers[tuple(slice(None) if letter in own else None for letter in whole)].expand(shape)

    factors = [
        call.rearranged(state, lambda numbers, own=own: laid(numbers, own))  # type: ignore[misc]
        for state, own in zip(states, letters, strict=True)
    ]
    products = call.make(Product(), *factors, shape=shape)
    kept, count = tuple(sides[letter] for letter in answer), math.prod(sides[letter] for letter in gone)
    ones = torch.ones(1, count, dtype=torch.float64, device=call.device)
    return call.same(on_last_axis(call, call.same(products, (*kept, count)), ones), kept)


def contraction(call: Call, operands: Sequence[Any], letters: Sequence[str], answer: str) -> Node:
    """The sum, over the letters missing in the output, of the product of one value and one constant.

    If the constant only replaces some letters of the value by others, it is a matrix on one axis; otherwise the map is
    found by applying it to unit vectors.
    """
    place = next(k for k, operand in enumerate(operands) if isinstance(operand, Node))
    source, weight = operands[place], operands[1 - place].to(torch.float64)
    inside, outside = letters[place], letters[1 - place]
    if not bool(torch.isfinite(weight).all()):
        raise NotCoveredError("with a constant that is not finite")
    if inside[0] not in answer:
        raise NotCoveredError("that sums over the batch")
    if answer[0] != inside[0]:
        raise NotCoveredError("that does not keep the batch as the first axis")
    if inside[0] in outside:  # one constant per sample, which must be the same for all
        axis = outside.index(inside[0])
        if weight.shape[axis] != 1 and not bool((weight == weight.narrow(axis, 0, 1)).all()):
            raise NotCoveredError("with a constant that differs between the samples of a batch")
        weight, outside = weight.select(axis, 0), outside.replace(inside[0], "")
    for axis in reversed(range(len(outside))):  # letters that broadcast
        letter = outside[axis]
        if letter not in inside + answer and weight.shape[axis] > 1:  # a sum of constants, which may cancel
            return by_trying(call, source)
        if weight.shape[axis] == 1 and (letter in inside) == (letter in answer):
            weight, outside = weight.squeeze(axis), outside[:axis] + outside[axis + 1 :]
    own = inside[1:]
    gone = "".join(letter for letter in own if letter not in answer)
    new = "".join(letter for letter in outside if letter not in own)
    if set(outside) - set(gone) - set(new) or not set(gone) <= set(outside):
        return by_trying(call, source)
    kept = "".join(letter for letter in own if letter in answer)
    order = [own.index(letter) for letter in kept + gone]
    sides = {letter: source.shape[k] for k, letter in enumerate(own)}
    matrix = weight.permute([outside.index(letter) for letter in new + gone])
    sides |= {letter: matrix.shape[k] for k, letter in enumerate(new)}
    if [sides[letter] for letter in gone] != list(matrix.shape[len(new) :]):
        return by_trying(call, source)
    flat = (*(sides[letter] for letter in kept), math.prod(sides[letter] for letter in gone))
    entry = call.same(_permuted(call, source, order), flat)
    image = on_last_axis(call, entry, matrix.reshape(math.prod(sides[letter] for letter in new), flat[-1]))
    image = call.same(image, tuple(sides[letter] for letter in kept + new))
    image = _permuted(call, image, [(kept + new).index(letter) for letter in answer[1:]])
    return call.same(image, call.out_shape)


def _permuted(call: Call, source: Node, order: Sequence[int]) -> Node:
    if list(order) == sorted(order):
        return source
    return call.rearranged(source, lambda numbers: numbers.permute(list(order)))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def resampled(call: Call) -> Node:
    """Values at the points of a constant grid.

    Rounded points shift the weights, and those of bicubic interpolation cancel at edges, so all entries are charged
    relative to the largest one.
    """
    call.constant("grid")
    source = call.node("input")
    matrix = matrix_of(call, source, lambda values: call.evaluate({source: values}))
    magnitude = matrix.abs() + matrix.abs().max()
    seen = 64 + 4 * max(source.shape)
    return call.linear(source, Dense(matrix, source.shape, call.out_shape, seen=seen, magnitude=magnitude))


@rule("cumsum")
def summed_up(call: Call) -> Node:
    """Cumulative sums along an axis: a lower triangular matrix of ones."""
    source = call.node("self")
    (axis,) = call.axes(source, call["dim"])
    triangle = torch.ones(source.shape[axis], source.shape[axis], dtype=torch.float64).tril()
    return call.linear(source, along_axis(triangle.to(call.device), source.shape, axis))


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def batch_norm(call: Call) -> Node:
    """With running statistics: each channel times gamma / sqrt(variance + eps)."""
    names = ("training", "use_input_stats")
    if any(call.arguments.get(name) for name in names) or call.arguments.get("running_var") is None:
        raise NotCoveredError("by the statistics of the batch")
    source, eps = call.node("input"), float(call.arguments.get("eps", call.arguments.get("epsilon")))
    wide = [1] * (len(source.shape) - 1)

    def channels(name: str, default: float) -> Tensor:
        value = call.constant(name)
        given = torch.full((source.shape[0],), default) if value is None else value.detach()
        return given.to(call.device, torch.float64).reshape(-1, *wide)

    scale = channels("weight", 1.0) / torch.sqrt(channels("running_var", 1.0) + eps)
    if not bool(torch.isfinite(scale).all()):
        raise NotCoveredError("with a scale that is not finite")
    shift, peak = call.added((channels("running_mean", 0.0) * scale).abs() + channels("bias", 0.0).abs())
    return call.linear(source, Diagonal(scale.flatten(), source.shape, seen=5), shift=shift, peak=peak)


def _weight(call: Call, name: str) -> Tensor:
    weight = call.constant(name)
    if not isinstance(weight, Tensor):
        raise NotCoveredError(f"without a constant {name}")
    if not bool(torch.isfinite(weight).all()):
        raise NotCoveredError(f"with a {name} that is not finite")
    return weight.detach().to(torch.float64)


def _two(call: Call, name: str, neutral: int) -> tuple[int, int]:
    """One or two numbers as two; the axis of height 1 of a one-dimensional convolution gets the neutral one."""
    first, second = numbers(call[name], 2)
    return (neutral if len(call.out_shape) == 2 else first, second)


def _padding(call: Call, kernel: Tensor, dilation: tuple[int, int]) -> Padding:
    """Zeros before and after along each axis, from numbers, "same" or "valid"."""
    if call["padding"] == "same":
        totals = [d * (k - 1) for k, d in zip(kernel.shape[2:], dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    return both_sides((0, 0) if call["padding"] == "valid" else _two(call, "padding", 0))


def image_of(shape: Shape) -> Shape:
    """(C, H, W); signals (C, N) become images of height 1."""
    if len(shape) not in (2, 3):
        raise NotCoveredError(f"on inputs of shape {shape}")
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def reshaped(inner: LinearMap, in_shape: Shape, out_shape: Shape) -> LinearMap:
    """`inner` with reshaped inputs and outputs of the same sizes."""
    parts: list[LinearMap] = [inner]
    if inner.in_shape != in_shape:
        parts.insert(0, Identity(in_shape, inner.in_shape))
    if inner.out_shape != out_shape:
        parts.append(Identity(inner.out_shape, out_shape))
    return parts[0] if len(parts) == 1 else Composition(parts)


def on_last_axis(call: Call, source: Node, weight: Tensor) -> Node:
    """(..., in) to (..., out)."""
    if weight.ndim != 2 or weight.shape[1:] != source.shape[-1:]:
        raise NotCoveredError(f"of shape {tuple(weight.shape)} on inputs of shape {source.shape}")
    return call.linear(source, along_axis(weight, source.shape, len(source.shape) - 1))
