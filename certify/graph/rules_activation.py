"""Rules for activations and for maps along an axis: the kind of each operation and its parameters."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.graph.call import Call, NotCoveredError, Parts
from robustres.certify.graph.network import Merge, Node, Opaque
from robustres.certify.graph.registry import rule
from robustres.certify.graph.rules_arithmetic import scaled_by_constant
from robustres.certify.graph.statements import HasSortedGroups
from robustres.certify.maps.activation import Activation, Parameter
from robustres.certify.maps.convolution import along_axis as matrix_on_axis
from robustres.certify.maps.lengths import Length
from robustres.certify.maps.nonlinear import Extremum, LogSumExp, Running, Softmax, Sort, Stated, StatedSort
from robustres.certify.maps.piecewise_linear import Abs, Clamp, Hardsigmoid, LeakyRelu, Relu, Softshrink
from robustres.certify.maps.smooth import (
    Asinh,
    Atan,
    Cos,
    Elu,
    Erf,
    Erfc,
    Gelu,
    Hardswish,
    LogSigmoid,
    Mish,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Tanh,
)
from robustres.certify.maps.sorting import sorts_as_stated
from robustres.certify.proof.bound import Bound

# torch's default threshold of softplus; for smaller thresholds the jump to the identity is not negligible.
SOFTPLUS_THRESHOLD = 20.0
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _clamp(call: Call) -> Activation:
    low, high = (call.parameter(name, default) for name, default in (("min", -math.inf), ("max", math.inf)))
    return Clamp(low, high)


def _leaky(call: Call, left: Parameter) -> Activation:
    if not (left.isfinite().all() if isinstance(left, Tensor) else math.isfinite(left)):
        raise NotCoveredError("with a slope that is not finite")
    return LeakyRelu(left)


def _prelu(call: Call) -> Activation:
    """One slope per entry of the first axis, or one for all; for _prelu_kernel it is already broadcast."""
    weight = call.constant("weight")
    if weight.ndim == 1 and weight.numel() > 1:
        return _leaky(call, call.per_sample(weight.reshape(-1, *[1] * (len(call.out_shape) - 1))))
    return _leaky(call, call.per_sample(weight))


def _rrelu(call: Call) -> Activation:
    if call.constant("training"):
        raise NotCoveredError("in training mode, where its slopes are random")
    return _leaky(call, (float(call["lower"]) + float(call["upper"])) / 2)


def _elu(call: Call) -> Activation:
    alpha, scale, input_scale = (float(call[name]) for name in ("alpha", "scale", "input_scale"))
    if not (input_scale >= 0 and all(map(math.isfinite, (alpha, scale, input_scale)))):
        raise NotCoveredError("with a negative input_scale or a slope that is not finite")
    return Elu(alpha, scale, input_scale)


def _celu(call: Call) -> Activation:
    alpha = float(call["alpha"])
    if not alpha > 0:
        raise NotCoveredError("with alpha of 0 or less")
    return Elu(alpha, 1.0, 1 / alpha)


def _softplus(call: Call) -> Activation:
    beta, threshold = float(call["beta"]), float(call["threshold"])
    if not 0 < beta < math.inf:
        raise NotCoveredError("with beta that is not positive and finite")
    if not threshold >= SOFTPLUS_THRESHOLD:
        raise NotCoveredError(
            f"with threshold {threshold:g}, where its value jumps by {math.log1p(math.exp(-threshold)) / beta:.3g}, so "
            f"that it has no Lipschitz constant; leave the threshold at {SOFTPLUS_THRESHOLD:g} or more"
        )
    return Softplus(beta, threshold)


def _threshold(call: Call) -> Activation:
    if float(call["threshold"]) != float(call["value"]):
        raise NotCoveredError("whose value below the threshold is not the threshold, so that it jumps")
    return Clamp(float(call["threshold"]), math.inf)


def _softshrink(call: Call) -> Activation:
    return Softshrink(float(call["lambd"]))


def _hardshrink(call: Call) -> Activation:
    if float(call["lambd"]) != 0:
        raise NotCoveredError("which jumps where |x| passes lambd")
    return LeakyRelu(1.0)


# Every ATen operation that is an activation, and its kind.
ACTIVATIONS: dict[str, Callable[[Call], Activation]] = {
    "relu": lambda call: Relu(),
    "relu6": lambda call: Clamp(0.0, 6.0),
    "hardtanh": lambda call: Clamp(float(call["min_val"]), float(call["max_val"])),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _clamp),
    "threshold": _threshold,
    **dict.fromkeys(("abs", "absolute"), lambda call: Abs()),
    "leaky_relu": lambda call: _leaky(call, float(call["negative_slope"])),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("rrelu", "rrelu_with_noise"), _rrelu),
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "hardsigmoid": lambda call: Hardsigmoid(),
    "hardswish": lambda call: Hardswish(),
    **dict.fromkeys(("sigmoid", "special_expit"), lambda call: Sigmoid()),
    "tanh": lambda call: Tanh(),
    **dict.fromkeys(("erf", "special_erf"), lambda call: Erf()),
    **dict.fromkeys(("erfc", "special_erfc"), lambda call: Erfc()),
    **dict.fromkeys(("atan", "arctan"), lambda call: Atan()),
    **dict.fromkeys(("asinh", "arcsinh"), lambda call: Asinh()),
    "sin": lambda call: Sin(),
    "cos": lambda call: Cos(),
    **dict.fromkeys(("log_sigmoid", "log_sigmoid_forward"), lambda call: LogSigmoid()),
    "gelu": lambda call: Gelu(call["approximate"]),
    "silu": lambda call: Silu(),
    "mish": lambda call: Mish(),
    "softplus": _softplus,
    "elu": _elu,
    "celu": _celu,
    "selu": lambda call: Elu(SELU_ALPHA, SELU_SCALE, 1.0),
}


@rule(*ACTIVATIONS)
def activation(call: Call) -> Node:
    """An activation of every coordinate; parameters that are larger than the value broadcast it first."""
    return call.elementwise(call.only_input, ACTIVATIONS[call.name](call))


@rule("maximum", "minimum", "max.other", "min.other", "fmax", "fmin")
def extremum(call: Call) -> Node:
    """For a value and a constant, the clamped value; for two values, a 1-Lipschitz map of their concatenation."""
    largest = "max" in call.name
    values = (call["self"], call["other"])
    inputs = [call.expanded(value) for value in values if isinstance(value, Node)]
    if len(inputs) == 2:
        return call.make(Merge("maximum" if largest else "minimum"), *inputs)
    bound = call.per_sample(next(value for value in values if not isinstance(value, Node)))
    return call.elementwise(inputs[0], Clamp(bound, math.inf) if largest else Clamp(-math.inf, bound))


@rule(
    "sort", "msort", "topk", "max.dim", "min.dim", "amax", "amin", "softmax", "_softmax", "_safe_softmax", "logsumexp"
)
def along_axis(call: Call) -> Node:
    """A map on every slice along one or several axes."""
    source = call.node("self")
    axes = call.axes(source, call.arguments.get("dim"))
    if call.arguments.get("sorted") is False:
        raise NotCoveredError("in no fixed order; pass sorted=True")
    keepdim, length = bool(call.arguments.get("keepdim")), math.prod(source.shape[axis] for axis in axes)
    kinds: dict[str, Callable[[], Opaque]] = {
        "sort": lambda: Sort(axes[0], bool(call.arguments.get("descending"))),
        "topk": lambda: Sort(axes[0], bool(call["largest"]), int(call["k"])),
        **dict.fromkeys(("max", "amax"), lambda: Extremum(axes, largest=True, keepdim=keepdim)),
        **dict.fromkeys(("min", "amin"), lambda: Extremum(axes, largest=False, keepdim=keepdim)),
        **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), lambda: Softmax(axes[0], length)),
        "logsumexp": lambda: LogSumExp(axes, length, keepdim),
    }
    return call.make(kinds[call.name](), source)


@rule("cummax", "cummin")
def running(call: Call) -> Node:
    """The largest or smallest value so far along an axis."""
    source = call.node("self")
    (axis,) = call.axes(source, call["dim"])
    return call.make(Running(axis, source.shape[axis], call.name == "cummax"), source)


@rule("quantile", "nanquantile")
def interpolated_order_statistic(call: Call) -> Node:
    """A quantile of the values along an axis: a weighted mean of two neighbours of the values in order."""
    source, q = call.node("self"), call.constant("q")
    (axis,) = call.axes(source, call["dim"])
    length = source.shape[axis]
    if isinstance(q, Tensor) and q.numel() != 1:
        raise NotCoveredError("with several q at once; stack the quantiles of each")
    place = float(q) * (length - 1)
    share = {"lower": 0.0, "higher": 1.0, "midpoint": 0.5, "nearest": round(place % 1), "linear": place % 1}
    weights = torch.zeros(1, length, dtype=torch.float64, device=call.device)
    below, step = math.floor(place), share[call["interpolation"]] if place % 1 else 0.0
    weights[0, below] = 1 - step
    weights[0, min(below + 1, length - 1)] += step
    ordered = call.make(Sort(axis), source, shape=source.shape)
    return call.same(call.linear(ordered, matrix_on_axis(weights, source.shape, axis)))


@rule("copysign")
def with_sign(call: Call) -> Node:
    """|x| with the signs of a constant."""
    signs = call.per_sample(call["other"]) if not isinstance(call["other"], Node) else None
    if signs is None:
        raise NotCoveredError("whose sign depends on the input, which jumps where it changes")
    size = call.elementwise(call.node("self"), Abs())
    return scaled_by_constant(call, size, torch.copysign(torch.ones(()), torch.as_tensor(signs)))


@rule("kthvalue", "median.dim", "nanmedian.dim")
def order_statistic(call: Call) -> Node:
    """One order statistic of the values along an axis."""
    source = call.node("self")
    (axis,) = call.axes(source, call["dim"])
    place = int(call["k"]) - 1 if "k" in call.arguments else (source.shape[axis] - 1) // 2
    ordered = call.make(Sort(axis), source, shape=source.shape)
    return call.rearranged(ordered, lambda numbers: numbers.select(axis, place).reshape(call.out_shape))


@rule("aminmax")
def both_extrema(call: Call) -> Parts:
    """The smallest and the largest value along an axis."""
    source = call.node("self")
    axes, keepdim = call.axes(source, call["dim"]), bool(call["keepdim"])
    return Parts(tuple(call.make(Extremum(axes, largest, keepdim), source) for largest in (False, True)))


@rule("linalg_vector_norm", "norm.ScalarOpt_dim")
def length(call: Call) -> Node:
    """A norm of the values along one or several axes."""
    source = call.node("self")
    axes = call.axes(source, call["dim"])
    order = call.arguments.get("ord", call.arguments.get("p"))
    order = 2.0 if order is None else float(order)
    if order not in (1.0, 2.0, math.inf):
        raise NotCoveredError(f"of order {order:g}; orders 1, 2 and infinity have a bound")
    size = math.prod(source.shape[axis] for axis in axes)
    return call.make(Length(axes, size, order, bool(call.arguments.get("keepdim"))), source)


@rule("robustres.stated")
def stated(call: Call) -> Node:
    """A module that states its own bound."""
    source, path = call.node("x"), str(call["path"])
    module = call.captured.module.get_submodule(path)
    bound = module.lipschitz_bound(source.shape)  # type: ignore[operator]
    if not isinstance(bound, Bound):
        raise NotCoveredError(f"whose lipschitz_bound returned {type(bound).__name__} and not a Bound")
    piece: Opaque = Stated(bound, call.out_shape)
    if isinstance(module, HasSortedGroups):
        groups = module.sorted_groups()
        if not sorts_as_stated(module, groups, source.shape, call.device):
            raise NotCoveredError(f"whose sorted_groups stated {groups}, which is not how it sorts")
        piece = StatedSort(groups)
    return replace(call.make(piece, source), path=path)
