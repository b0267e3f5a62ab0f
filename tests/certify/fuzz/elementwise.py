"""Productions for elementwise functions, and for sums, differences and products with constants."""

from tests.certify.fuzz.draft import Draft
from tests.certify.fuzz.productions import draws

# By their ATen names; they need no arguments.
PLAIN = (
    *("relu", "relu6", "hardtanh", "tanh", "atan", "log_sigmoid", "sigmoid", "hardsigmoid", "abs", "sin", "cos"),
    *("hardswish", "silu", "mish", "celu", "elu", "selu", "gelu", "softplus", "leaky_relu"),
    *("absolute", "arctan", "erf", "special_erf", "special_expit", "rrelu", "softshrink"),
)
PIECEWISE = ("torch.relu", "torch.abs", "F.hardtanh", "F.leaky_relu", "F.relu6", "F.hardsigmoid")
SAME = ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "positive", "neg")
SPELT_OUT = (
    "{v} * torch.sigmoid({v})",
    "0.5 * {v} * (1 + torch.erf({v} / 2 ** 0.5))",
    "{v} * torch.tanh(F.softplus({v}))",
    "{v} * F.relu6({v} + 3) / 6",
    "torch.where({v} > 0, {v}, 0.1 * {v})",
    "torch.where({v} > 0, {v}, torch.zeros_like({v}))",
    "{v} * ({v} > 0)",
    "{v}.clip(0, 1)",
    "torch.erf({v})",
    "F.softshrink({v})",
    "F.hardshrink({v})",
    "F.softsign({v})",
    "F.tanhshrink({v})",
    "torch.maximum({v}, 0 * {v})",
    "torch.relu({v}) - torch.relu(-{v})",
    "(torch.relu({v}) + 0.1 * {v}) / 1.1",
    "{v}.to({v}.device)",
    "{v}.type_as({v})",
    "{v}.to(torch.float64)",
    "{v}.to(torch.float32).to(torch.float64)",
    "F.dropout({v}, 0.5, False)",
    "torch.logaddexp({v}, {v})",
    "torch.sqrt({v} * {v} + 1)",
    "torch.arctan({v})",
    "torch.expm1(-F.relu({v}))",
    "torch.exp(-F.relu({v}))",
    "torch.log1p(F.relu({v}))",
    "torch.nan_to_num({v})",
    "torch.hypot({v}, torch.ones_like({v}))",
)


@draws(*PLAIN, weight=7)
def plain(d: Draft) -> None:
    """An activation with its default settings."""
    name = d.one_of(*PLAIN)
    v = d.value()
    inside = d.one_of(v, v, v, f"{v} - 30.0", f"{v} + 1.0", f"5.0 * {v}")
    d.write(f"aten.{name}({inside})")


@draws("relu", "abs", "hardtanh", "leaky_relu", "relu6", "hardsigmoid", weight=9)
def piecewise(d: Draft) -> None:
    """A piecewise linear activation, occasionally of a value that hides it from inputs of size 1."""
    v = d.value()
    name = d.one_of(*PIECEWISE)
    d.write(f"{name}({d.one_of(v, v, f'{v} - 30.0', f'{v} + 30.0')})")


@draws(*SAME, "detach", "_to_copy", "to", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def same(d: Draft) -> None:
    """The same values, or their negatives."""
    v = d.value()
    dropout = d.one_of("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    d.write(
        d.one_of(
            *(f"aten.{name}({v})" for name in SAME),
            f"aten.{dropout}({v}, 0.5, False)",
            f"{v}.to(memory_format=torch.contiguous_format, copy=True)",
            f"aten._to_copy({v}, dtype=torch.float64)",
        )
    )


@draws(
    *("hardtanh", "clamp", "clip", "gelu", "elu", "celu", "softplus", "leaky_relu", "threshold", "softshrink"),
    *("hardshrink", "rrelu", "rrelu_with_noise", "log_sigmoid_forward"),
    weight=4,
)
def with_settings(d: Draft) -> None:
    """An activation with settings."""
    v, low = d.value(), d.one_of(0.0, -0.5, 2.0, -30.0)
    high, slope, alpha = (
        low + d.one_of(1.0, 0.0, 0.1),
        d.one_of(0.3, 1.0, -2.0, 0.0, 1.5),
        d.one_of(1.0, 0.5, 3.0, -1.0),
    )
    d.write(
        d.one_of(
            f"F.hardtanh({v}, {low}, {high})",
            f"torch.clamp({v}, {low}, {high})",
            f"torch.clamp({v}, min={low})",
            f"torch.clamp({v}, max={high})",
            f"F.gelu({v}, approximate='tanh')",
            f"F.elu({v}, {alpha})",
            f"F.celu({v}, {alpha})",
            f"aten.elu({v}, {alpha}, {slope}, {d.one_of(1.0, 2.0, 0.5)})",
            f"F.softplus({v}, {abs(alpha)}, {d.one_of(20.0, 5.0, 40.0, 1.0)})",
            f"F.leaky_relu({v}, {slope})",
            f"F.threshold({v}, {low}, {d.one_of(low, low, 0.0)})",
            f"torch.clip({v}, {low}, {high})",
            f"F.softshrink({v}, {abs(slope)})",
            f"F.hardshrink({v}, {d.one_of(0.0, 0.5)})",
            f"F.rrelu({v}, 0.1, 0.3)",
            f"aten.rrelu_with_noise({v}, torch.ones({list(d.values[v].shape[1:])}), 0.1, 0.3)",
            f"aten.log_sigmoid_forward({v})[0]",
        )
    )


@draws(
    "clamp",
    "clamp.Tensor",
    "clamp_min",
    "clamp_max",
    "maximum",
    "minimum",
    "max.other",
    "min.other",
    "clip",
    "fmax",
    "fmin",
    weight=4,
)
def with_a_constant_limit(d: Draft) -> None:
    """Limits that are tensors and broadcast."""
    v = d.value()
    low = d.broadcasting(v)
    d.write(
        d.one_of(
            f"torch.clamp({v}, min={low})",
            f"torch.clamp({v}, max={low})",
            f"torch.clamp({v}, {low}, {low} + 1)",
            f"torch.clamp_min({v}, {low})",
            f"torch.clamp_max({v}, {low})",
            f"aten.clamp_min({v}, 0.5)",
            f"aten.clamp_max({v}, -0.5)",
            f"torch.maximum({v}, {low})",
            f"torch.minimum({low}, {v})",
            f"torch.max({v}, {low})",
            f"torch.min({v}, {low})",
            f"torch.clip({v}, min={low})",
            f"torch.fmax({v}, {low})",
            f"torch.fmin({low}, {v})",
            f"torch.where({v} > {low}, {v}, {low})",
            f"torch.where({low} > 0, {v}, {low})",
        )
    )


@draws("prelu", "_prelu_kernel")
def prelu(d: Draft) -> None:
    """A learnt slope, for all channels or per channel."""
    v = d.value(lambda shape: len(shape) > 0)
    slopes = d.constant((d.one_of(1, d.shape(v)[0]),))
    d.write(f"F.prelu({v}, {slopes})")


@draws("maximum", "minimum", "max.other", "min.other", "fmax", "fmin", "add", "sub", weight=4)
def of_two_values(d: Draft) -> None:
    """A sum, a difference, a maximum or a minimum of two values, which may broadcast or be the same."""
    left = d.value()
    right = d.value(lambda shape: _meets(shape, d.shape(left)))
    alpha = d.real()
    d.write(
        d.one_of(
            f"{left} + {right}",
            f"{left} - {right}",
            f"torch.add({left}, {right}, alpha={alpha})",
            f"torch.sub({left}, {right}, alpha={alpha})",
            f"torch.rsub({left}, {right}, alpha={alpha})",
            f"torch.maximum({left}, {right})",
            f"torch.minimum({left}, {right})",
            f"torch.fmax({left}, {right})",
            f"torch.fmin({left}, {right})",
            f"torch.max({left}, {right})",
            f"torch.min({left}, {right})",
            f"torch.lerp({left}, {right}, {alpha})",
            f"torch.where({left} > {right}, {left}, {right})",
            f"torch.where({left} > 0, {left}, {right})",
            f"{left} * torch.sigmoid({right})",
        )
    )


def _meets(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    pairs = zip(left[::-1], right[::-1], strict=False)
    return len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in pairs)


@draws("add", "sub", "rsub", "mul", "multiply", "div", "divide", "true_divide", "neg", weight=6)
def with_a_constant(d: Draft) -> None:
    """A sum, difference, product or quotient with a number or a tensor, on either side."""
    v = d.value()
    c = d.one_of(d.broadcasting(v), str(d.real()))
    tensor = c.startswith("self")
    spelt = [
        *(f"{v} + {c}", f"{c} + {v}", f"{v} - {c}", f"{c} - {v}", f"{v} * {c}", f"{c} * {v}", f"{v} / {c}"),
        *(f"torch.add({v}, {c}, alpha=-2.0)", f"torch.sub({v}, {c}, alpha=0.5)", f"torch.rsub({v}, {c}, alpha=3.0)"),
        *(f"torch.multiply({v}, {c})", f"torch.divide({v}, {c})", f"torch.true_divide({v}, {c})", f"-{v}"),
        *(f"({v} - 0.5) / 0.25", f"({v} - {c}) / 0.3"),
    ]
    if tensor:
        spelt += [
            f"torch.addcmul({v}, {c}, {c}, value=0.5)",
            f"torch.addcmul({c}, {v}, {c}, value=0.5)",
            f"torch.addcdiv({c}, {v}, {c}, value=0.5)",
            f"torch.lerp({v}, {c}, 0.3)",
            f"torch.lerp({v}, {c}, torch.sigmoid({c}))",
        ]
    d.write(d.one_of(*spelt))


@draws(weight=2)
def spelt_out(d: Draft) -> None:
    """Named functions written by hand; functions that have no rule or are steep near 0."""
    d.write(d.one_of(*SPELT_OUT).format(v=d.value()))


@draws("relu", "add", "mul", weight=1)
def in_place(d: Draft) -> None:
    """A copy that is changed in place."""
    v = d.value()
    h = f"v{len(d.program.lines)}"
    d.run(f"{h} = {v}.clone()", h)
    change = d.one_of("relu_()", "mul_(0.5)", "add_(1.0)", "clamp_(0, 1)", f"add_({v})", "abs_()")
    if d.chance() and d.shape(h):
        d.run(f"{h}[:, 0].{change}", h)
        d.run(f"{h}[:, -1] = 0.5 * {h}[:, 0]", h)
    else:
        d.run(f"{h}.{change}", h)
