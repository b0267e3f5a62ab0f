"""Rules for activations: the interval that holds every difference quotient of the scalar function.

The extreme slopes of GELU, SiLU and Mish are roots of their second derivatives, rounded outwards; the tests derive them
again in high precision.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.graph.capture import device_of
from robustres.certify.graph.network import SORT_BY_WORD, Elementwise, Merge, Node, Opaque
from robustres.certify.graph.operation_rules import Call, NotCoveredError, Parts, rule
from robustres.certify.graph.statements import HasSortedGroups
from robustres.certify.maps.sorting import sorts_as_stated
from robustres.certify.proof.bound import Bound

Slopes = tuple[float, float]

# Phi(sqrt 2) + sqrt 2 phi(sqrt 2), reached at x = sqrt 2; the smallest slope is 1 minus it by symmetry.
GELU: Slopes = (-0.128904145185155, 1.128904145185155)
GELU_TANH: Slopes = (-0.128993068658772, 1.128993068658772)
SILU: Slopes = (-0.099839320128867, 1.099839320128867)
MISH: Slopes = (-0.112526122389463, 1.088498161251728)

FIXED: dict[str, Slopes] = {
    "relu": (0.0, 1.0),
    "relu6": (0.0, 1.0),
    "hardtanh": (0.0, 1.0),
    "clamp": (0.0, 1.0),
    "clamp_min": (0.0, 1.0),
    "clamp_max": (0.0, 1.0),
    "tanh": (0.0, 1.0),
    "atan": (0.0, 1.0),
    "log_sigmoid": (0.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "hardsigmoid": (0.0, math.nextafter(1 / 6, 1)),
    "abs": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "hardswish": (-0.5, 1.5),
    "silu": SILU,
    "mish": MISH,
}


@rule(*FIXED)
def fixed_slopes(call: Call) -> Node:
    """An activation whose slopes do not depend on its settings."""
    name = str(call.origin.target).removeprefix("aten.").split(".")[0]
    return call.make(Elementwise(name, FIXED[name]), call.only_input)


@rule("gelu")
def gelu(call: Call) -> Node:
    """GELU, exact or with tanh."""
    return call.make(Elementwise("gelu", GELU if call["approximate"] == "none" else GELU_TANH), call.only_input)


@rule("leaky_relu")
def leaky_relu(call: Call) -> Node:
    """Slopes 1 and negative_slope."""
    return _kinked(call, "leaky_relu", float(call["negative_slope"]), 1.0)


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Node:
    """Slopes 1 and the learnt ones of all channels."""
    weight: Tensor = call.constant("weight").to(torch.float64)
    return _kinked(call, "prelu", float(weight.min()), float(weight.max()), 1.0)


@rule("celu")
def celu(call: Call) -> Node:
    """Slope exp(x / alpha) on the left."""
    if float(call["alpha"]) <= 0:
        raise NotCoveredError("with alpha of 0 or less")
    return call.make(Elementwise("celu", (0.0, 1.0)), call.only_input)


@rule("elu")
def elu(call: Call) -> Node:
    """scale on the right; alpha scale input_scale exp(input_scale x) on the left (SELU is a case of it)."""
    alpha, scale, input_scale = (float(call[name]) for name in ("alpha", "scale", "input_scale"))
    if input_scale < 0:
        raise NotCoveredError("with a negative input_scale")
    steepest = alpha * scale * input_scale
    outward = math.nextafter(steepest, math.copysign(math.inf, steepest))
    return _kinked(call, "elu", 0.0, outward, scale)


@rule("softplus")
def softplus(call: Call) -> Node:
    """log(1 + exp(beta x)) / beta, cut over to x itself where beta x exceeds the threshold."""
    beta, cut = float(call["beta"]), float(call["threshold"])
    if beta <= 0:
        raise NotCoveredError("with beta of 0 or less")
    return call.make(Elementwise("softplus", (0.0, 1.0), 1.01 * math.exp(-cut) / beta), call.only_input)


@rule("selu")
def selu(call: Call) -> Node:
    """Slopes up to scale alpha = 1.7580993408473766."""
    return call.make(Elementwise("selu", (0.0, 1.758099340847377)), call.only_input)


@rule("threshold")
def threshold(call: Call) -> Node:
    """max(x, t), where the value below the threshold is the threshold itself."""
    if float(call["threshold"]) != float(call["value"]):
        raise NotCoveredError("with a jump")
    return call.make(Elementwise("threshold", (0.0, 1.0)), call.only_input)


def _kinked(call: Call, name: str, *slopes: float) -> Node:
    if not all(map(math.isfinite, slopes)):
        raise NotCoveredError("with a slope that is not finite")
    return call.make(Elementwise(name, (min(slopes), max(slopes))), call.only_input)


@rule("maximum", "minimum", "max.other", "min.other")
def extremum(call: Call) -> Node:
    """Of a value and a constant: slopes in [0, 1]. Of two values: 1-Lipschitz in the two side by side."""
    name = "maximum" if "max" in str(call.origin.target) else "minimum"
    inputs = [call.expanded(value) for value in (call["self"], call["other"]) if isinstance(value, Node)]
    if len(inputs) == 1:
        return call.make(Elementwise(name, (0.0, 1.0)), inputs[0])
    return call.make(Merge("stack", name), *inputs)


@dataclass(frozen=True)
class _Known:
    """Lipschitz constants in l2 and linf of a map on every slice along one axis."""

    name: str
    l2: float
    linf: float


# Sorting permutes: |sort x - sort y| <= |x - y| in every norm. softmax: its Jacobian diag(p) - p p^T is the covariance
# of one draw from p, so v^T J v = Var_p(v) <= (max v - min v)^2 / 4 <= |v|^2 / 2, and its row sums are
# 2 p_i (1 - p_i) <= 1/2. logsumexp: its gradient is p, of norm at most 1 in l2 and l1.
ALONG_AXIS: dict[str, _Known] = {
    "sort": _Known("sort", 1.0, 1.0),
    "topk": _Known("sort", 1.0, 1.0),
    "max.dim": _Known("max", 1.0, 1.0),
    "min.dim": _Known("min", 1.0, 1.0),
    "amax": _Known("max", 1.0, 1.0),
    "amin": _Known("min", 1.0, 1.0),
    "softmax": _Known("softmax", 0.5, 0.5),
    "_softmax": _Known("softmax", 0.5, 0.5),
    "logsumexp": _Known("logsumexp", 1.0, 1.0),
}


def _along_axis(known: _Known) -> Callable[[Call], Node | Parts]:
    def apply(call: Call) -> Node | Parts:
        source = call.node("self")
        given = call["dim"]
        axes = [given] if isinstance(given, int) else list(given)
        rank = len(source.shape) + 1
        if not axes or any(axis % rank == 0 for axis in axes):
            raise NotCoveredError("over the batch")
        axis = ",".join(str(axis % rank) for axis in sorted(axes))
        if call.arguments.get("sorted") is False:
            raise NotCoveredError("in no fixed order; pass sorted=True")
        along = axes[0] % rank - 1 if len(axes) == 1 else None
        piece = Opaque(f"{known.name} over axis {axis}", Bound(0.0, known.l2, "closed form"), known.linf, along)
        value = call.origin.meta["val"]
        if isinstance(value, Tensor):
            return call.make(piece, source)
        return Parts((call.make(piece, source, shape=tuple(value[0].shape[1:])),))

    return apply


for _name, _known in ALONG_AXIS.items():
    rule(_name)(_along_axis(_known))


@rule("robustres.stated")
def stated(call: Call) -> Node:
    """The module's own word."""
    source, path = call.node("x"), str(call["path"])
    module = call.captured.module.get_submodule(path)
    bound = module.lipschitz_bound(source.shape)  # type: ignore[operator]
    if not isinstance(bound, Bound):
        raise NotCoveredError(f"whose lipschitz_bound returned {type(bound).__name__} and not a Bound")
    piece = Opaque("stated by the module", bound, math.inf)
    if isinstance(module, HasSortedGroups):
        groups = module.sorted_groups()
        if not sorts_as_stated(module, groups, source.shape, device_of(call.captured.module)):
            raise NotCoveredError(f"whose sorted_groups stated {groups}, which is not how it sorts")
        piece = Opaque(SORT_BY_WORD, Bound(0.0, 1.0, "sort"), 1.0, sorts=groups)
    return Node(piece, (source,), call.out_shape, path, call.origin)
