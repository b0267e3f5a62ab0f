"""Activations."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import apply

SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # the defaults of ONNX: those of torch in float32


@operator("Relu", 6, 13, 14)
def relu(call: Call) -> Tensor:
    """max(x, 0)."""
    return functional.relu(call.tensor(0))


@operator("LeakyRelu", 6, 16)
def leaky_relu(call: Call) -> Tensor:
    """x, or alpha x below 0."""
    return functional.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("PRelu", 7, 9, 16)
def prelu(call: Call) -> Tensor:
    """x, or slope x below 0; the slope broadcasts against x."""
    x = call.tensor(0)
    if call.known(1):
        slope = call.constant(1, "a slope")
        sides = (1,) * (x.ndim - slope.ndim) + tuple(slope.shape)
        if x.ndim >= 2 and x.dtype.is_floating_point and all(side == 1 for k, side in enumerate(sides) if k != 1):
            layer = nn.PReLU(slope.numel())
            layer.weight = nn.Parameter(slope.reshape(-1))
            return call.module(layer)
    return torch.add(torch.clamp(x, min=0), torch.mul(torch.clamp(x, max=0), call.tensor(1)))


@operator("Elu", 6, 22)
def elu(call: Call) -> Tensor:
    """x, or alpha (exp x - 1) below 0."""
    return functional.elu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Selu", 6, 22)
def selu(call: Call) -> Tensor:
    """gamma x, or gamma alpha (exp x - 1) below 0."""
    alpha, gamma = call.attribute("alpha", SELU[0]), call.attribute("gamma", SELU[1])
    if math.isclose(alpha, SELU[0], rel_tol=1e-6) and math.isclose(gamma, SELU[1], rel_tol=1e-6):
        return functional.selu(call.tensor(0))
    return torch.mul(functional.elu(call.tensor(0), alpha), gamma)


@operator("Celu", 12)
def celu(call: Call) -> Tensor:
    """x, or alpha (exp(x / alpha) - 1) below 0."""
    return functional.celu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Sigmoid", 6, 13)
def sigmoid(call: Call) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(call.tensor(0))


@operator("HardSigmoid", 6, 22)
def hard_sigmoid(call: Call) -> Tensor:
    """alpha x + beta, clipped to [0, 1]."""
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return torch.clamp(torch.add(torch.mul(call.tensor(0), alpha), beta), 0, 1)


@operator("HardSwish", 14, 22)
def hard_swish(call: Call) -> Tensor:
    """x HardSigmoid(x) with alpha 1/6."""
    return functional.hardswish(call.tensor(0))


@operator("Swish", 24)
def swish(call: Call) -> Tensor:
    """x sigmoid(alpha x)."""
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else torch.mul(x, torch.sigmoid(torch.mul(x, alpha)))


@operator("Softplus", 1, 22)
def softplus(call: Call) -> Tensor:
    """log(1 + exp x)."""
    return functional.softplus(call.tensor(0))


@operator("Softsign", 1, 22)
def softsign(call: Call) -> Tensor:
    """x / (1 + |x|)."""
    return functional.softsign(call.tensor(0))


@operator("Mish", 18, 22)
def mish(call: Call) -> Tensor:
    """x tanh(softplus(x))."""
    return functional.mish(call.tensor(0))


@operator("Gelu", 20)
def gelu(call: Call) -> Tensor:
    """x Phi(x), or its tanh approximation."""
    return functional.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@operator("ThresholdedRelu", 10, 22)
def thresholded_relu(call: Call) -> Tensor:
    """x, or 0 where x does not exceed alpha."""
    return functional.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0)


@operator("Shrink", 9)
def shrink(call: Call) -> Tensor:
    """x + bias below -lambd, else x - bias above lambd, else 0."""
    x, bias, lambd = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    below = torch.mul(torch.lt(x, -lambd), torch.add(x, bias))
    last = -lambd  # if lambd is negative, the first condition holds up to -lambd
    above = torch.gt(x, lambd) if lambd >= 0 else torch.ge(x, last)
    return torch.add(below, torch.mul(above, torch.sub(x, bias)))


@operator("Clip", 6, 11, 12, 13)
def clip(call: Call) -> Tensor:
    """x clipped to two limits, each of which is optional."""
    if call.version == 6:
        low, high = call.attributes.get("min"), call.attributes.get("max")
    else:
        low = call.number(1, "a lower limit") if call.given(1) else None
        high = call.number(2, "an upper limit") if call.given(2) else None
    x = call.tensor(0)
    if low is None and high is None:
        return x
    if low is not None and high is not None and low > high:  # both specify that the upper limit takes precedence
        return torch.clamp(x, high, high)
    return torch.clamp(x, low, high)


@operator("Softmax", 1, 11, 13)
def softmax(call: Call) -> Tensor:
    """exp x / sum exp x along an axis; before set 13, over all axes from it on."""
    return _along(call, torch.softmax)


@operator("LogSoftmax", 1, 11, 13)
def log_softmax(call: Call) -> Tensor:
    """The logarithm of the softmax."""
    return _along(call, torch.log_softmax)


def _along(call: Call, function: Callable[..., Tensor]) -> Tensor:
    x = call.tensor(0)
    axis = call.axis(call.attribute("axis", -1 if call.version >= 13 else 1), x.ndim)
    if call.version >= 13 or axis == x.ndim - 1:
        return function(x, axis)
    result: Tensor = apply(torch.reshape, function(torch.flatten(x, axis), axis), x.shape)
    return result
