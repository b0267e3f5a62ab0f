"""Normalisations by learnt statistics or by those of each image."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@operator("BatchNormalization", 7, 9, 14, 15)
def batch_normalisation(call: Call) -> Tensor:
    """Each channel by learnt statistics: scale (x - mean) / sqrt(variance + epsilon) + bias."""
    call.only_output()
    if call.attribute("training_mode", 0):
        raise ModelError("is in training mode; call model.eval() before you export it")
    if not call.attribute("spatial", 1):
        raise ModelError("normalises every pixel separately (spatial=0), which is not supported")
    x, epsilon = call.tensor(0), call.attribute("epsilon", 1e-5)
    constants = all(call.known(position) for position in range(1, 5))
    if x.ndim not in BATCH_NORMS or not constants or call.place is not None:
        scale, bias, mean, variance = (call.tensor(position) for position in range(1, 5))
        return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
    scale, bias, mean, variance = (call.constant(k, "statistics").to(x.dtype) for k in range(1, 5))
    layer = BATCH_NORMS[x.ndim](len(scale), eps=epsilon)
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return call.module(layer)


@operator("InstanceNormalization", 6, 22)
def instance_normalisation(call: Call) -> Tensor:
    """Each channel of each image by its own mean and variance."""
    x = call.tensor(0)
    return functional.instance_norm(x, weight=call.tensor(1), bias=call.tensor(2), eps=call.attribute("epsilon", 1e-5))


@operator("LayerNormalization", 17)
def layer_normalisation(call: Call) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """All axes from a given one on by their mean and variance; also returns the mean and inverse deviation."""
    x, epsilon = call.tensor(0), call.attribute("epsilon", 1e-5)
    axis = call.axis(call.attribute("axis", -1), x.ndim)
    axes = tuple(range(axis, x.ndim))
    if any(call.outputs[1:]):
        mean = torch.mean(x, axes, keepdim=True)
        inverse = torch.rsqrt(torch.add(torch.var(x, axes, correction=0, keepdim=True), epsilon))
        y = torch.mul(torch.mul(torch.sub(x, mean), inverse), call.tensor(1))
        return torch.add(y, call.tensor(2)) if call.given(2) else y, mean, inverse
    sides = list(_static(x, axes))
    known = call.place is None and call.known(1) and (not call.given(2) or call.known(2))
    if known and list(call.constant(1, "a scale").shape) == sides:
        layer = nn.LayerNorm(sides, epsilon, bias=call.given(2), device="meta")
        layer.weight = nn.Parameter(call.constant(1, "a scale"))
        if call.given(2):
            layer.bias = nn.Parameter(call.constant(2, "a bias").expand(sides).clone())
        return call.module(layer)
    y = torch.mul(functional.layer_norm(x, sides, eps=epsilon), call.tensor(1))
    return torch.add(y, call.tensor(2)) if call.given(2) else y


@operator("RMSNormalization", 23)
def rms_normalisation(call: Call) -> Tensor:
    """All axes from a given one on by their root mean square."""
    x = call.tensor(0)
    axes = tuple(range(call.axis(call.attribute("axis", -1), x.ndim), x.ndim))
    square = torch.mean(torch.mul(x, x), axes, keepdim=True)
    return torch.mul(torch.mul(x, torch.rsqrt(torch.add(square, call.attribute("epsilon", 1e-5)))), call.tensor(1))


@operator("GroupNormalization", 18, 21)
def group_normalisation(call: Call) -> Tensor:
    """Groups of channels by their mean and variance; scale and bias are per group in set 18, per channel from 21 on."""
    x, groups = call.tensor(0), call.attribute("num_groups", 1)
    scale, bias = call.constant(1, "a scale"), call.constant(2, "a bias")
    channels = x.shape[1]
    if call.version == 18 and isinstance(channels, int) and groups > 0:
        scale, bias = (tensor.repeat_interleave(channels // groups) for tensor in (scale, bias))
    layer = nn.GroupNorm(groups, len(scale), call.attribute("epsilon", 1e-5))
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
    return call.module(layer)


@operator("MeanVarianceNormalization", 9, 13)
def mean_variance_normalisation(call: Call) -> Tensor:
    """By the mean and standard deviation over some axes."""
    x = call.tensor(0)
    given = call.ints_attribute("axes")
    axes = tuple(call.axis(axis, x.ndim) for axis in ([0, 2, 3] if given is None else given))
    centred = torch.sub(x, torch.mean(x, axes, keepdim=True))
    deviation = torch.sqrt(torch.mean(torch.mul(centred, centred), axes, keepdim=True))
    return torch.div(centred, torch.add(deviation, 1e-9))


@operator("LpNormalization", 1, 22)
def lp_normalisation(call: Call) -> Tensor:
    """Each slice along an axis by its norm; a zero slice is unchanged."""
    x, p = call.tensor(0), call.attribute("p", 2)
    if p not in (1, 2):
        raise ModelError(f"normalises by the norm {p}; only 1 and 2 are defined")
    axis = call.axis(call.attribute("axis", -1), x.ndim)
    return functional.normalize(x, float(p), axis, eps=torch.finfo(x.dtype).tiny)


@operator("LRN", 1, 13)
def local_response_normalisation(call: Call) -> Tensor:
    """By a sum of squares over neighbouring channels."""
    size, x = call.attribute("size", 0), call.tensor(0)
    if size < 1 or size % 2 == 0:
        raise ModelError(f"sums over {size} channels; only odd numbers are supported")
    alpha, beta = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75)
    return functional.local_response_norm(x, size, alpha, beta, call.attribute("bias", 1.0))


def _static(x: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    sides = tuple(x.shape[axis] for axis in axes)
    if not all(isinstance(side, int) for side in sides):
        raise ModelError("normalises over the batch axis")
    return sides
