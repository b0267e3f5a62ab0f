"""Productions for operations that are replaced by their definitions, and for values that move the batch."""

from tests.certify.fuzz.draft import Draft, UnfitError
from tests.certify.fuzz.productions import draws


@draws("linalg_vector_norm", "mean.dim", weight=4)
def spreads_and_distances(d: Draft) -> None:
    """Standard deviations and distances to constants."""
    v = d.value(lambda shape: len(shape) > 0)
    axis, shape = d.axis(v), d.shape(v)
    if d.values[v].shape[axis] < 2:
        raise UnfitError
    correction, kept = d.number(0, 1), d.chance()
    points = d.constant((d.number(1, 3), shape[-1]))
    spelt = [
        f"torch.std({v}, {axis}, correction={correction}, keepdim={kept})",
        f"{v}.std({axis}, unbiased={bool(correction)}, keepdim={kept})",
        f"torch.std_mean({v}, {axis}, keepdim={kept})[{correction}]",
        f"F.pairwise_distance({v}, {d.constant((1, *shape))}, keepdim=True)",
        f"torch.dist({v}, {v}) + {v}",
        f"torch.sqrt({v}.var({axis}, correction={correction}, keepdim=True))",
    ]
    if len(shape) == 1:
        spelt.append(f"torch.cdist({v}, {points}, p={d.one_of(2.0, 1.0, float('inf'))!r})".replace("inf", "torch.inf"))
    d.write(d.one_of(*spelt))


@draws(
    "ones_like",
    "asinh",
    "arcsinh",
    "copysign",
    "nan_to_num",
    "diag_embed",
    "hypot",
    "logaddexp",
    "erfc",
    "special_erfc",
    weight=4,
)
def functions_by_definition(d: Draft) -> None:
    """Functions of every coordinate, some of them with a constant."""
    v = d.value(lambda shape: len(shape) > 0)
    c = d.broadcasting(v, larger=False)
    d.write(
        d.one_of(
            f"{v} ** 0 + {v}", f"{v} ** 1", f"torch.asinh({v})", f"torch.arcsinh({v})", f"torch.nan_to_num({v})",
            f"torch.copysign({v}, {c})", f"torch.copysign({v}, -1.0)", f"torch.hypot({v}, {c})",
            f"torch.logaddexp({c}, {v})", f"torch.erfc({v})", f"torch.special.erfc({v})",
            f"torch.log(1 + {v}.relu())", f"torch.log1p({v}.abs())", f"torch.log({v}.clamp_min(0.1))",
            f"torch.sqrt({v}.relu() + 0.1)", f"torch.sqrt({v} ** 2 + 0.01)", f"{v} * torch.rsqrt(1 + {v} * {v})",
            f"{v}.clamp_min(0.5) ** -{d.number(1, 3)}", f"{v} / torch.sqrt(0.3 + {v} ** 2)",
            f"torch.deg2rad({v})", f"torch.diag_embed({v})", f"torch.special.softmax({v}, 1)",
            f"F.glu({v}.repeat(1, 2), 1)",
        )
    )  # fmt: skip


@draws("cummax", "cummin", "quantile", "nanquantile", weight=3)
def in_order(d: Draft) -> None:
    """Running extrema and quantiles."""
    v = d.value(lambda shape: len(shape) > 0)
    axis, kept = d.axis(v), d.chance()
    q, way = d.one_of(0.5, 0.0, 1.0, 0.3, 0.77), d.one_of("linear", "lower", "higher", "midpoint", "nearest")
    d.write(
        d.one_of(
            f"torch.cummax({v}, {axis})[0]",
            f"torch.cummin({v}, {axis})[0]",
            f"torch.quantile({v}, {q}, {axis}, keepdim={kept}, interpolation={way!r})",
            f"torch.nanquantile({v}, {q}, {axis}, keepdim={kept}, interpolation={way!r})",
        )
    )


@draws("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "einsum", weight=3)
def linear_by_trying(d: Draft) -> None:
    """Linear maps whose matrices are found by applying them to unit vectors."""
    v = d.value(lambda shape: len(shape) in (1, 3))
    shape = d.shape(v)
    if len(shape) == 3:
        grid = d.constant((1, d.number(1, 2), d.number(1, 3), 2))
        mode, edge = d.one_of("bilinear", "nearest", "bicubic"), d.one_of("zeros", "border", "reflection")
        settings = f"mode={mode!r}, padding_mode={edge!r}, align_corners={d.chance()}"
        d.write(f"F.grid_sample({v}, {grid}.expand(len({v}), -1, -1, -1).clamp(-2, 2), {settings})")
        return
    first, second = d.constant((shape[0], d.number(1, 3))), d.constant((shape[0],))
    d.write(
        d.one_of(
            f"torch.einsum('bi,ij,i->bj', {v}, {first}, {second})",
            f"torch.einsum('bi,ij->bi', {v}, {first})",
            f"torch.einsum('ij,bi,k->bk', {first}, {v}, {second})",
            f"F.bilinear({v}, {second}.expand(len({v}), -1), {d.constant((2, shape[0], shape[0]))})",
        )
    )


@draws("mul.Tensor", weight=2)
def products(d: Draft) -> None:
    """Products of several values, which are bounded on images in [0, 1] only."""
    v = d.value(lambda shape: len(shape) > 0)
    axis = d.axis(v)
    width = d.shape(v)[-1]
    d.write(
        d.one_of(
            f"torch.cumprod({v}, {axis})",
            f"torch.prod({v}, {axis}, keepdim={d.chance()})",
            f"torch.var({v}, {axis}, correction=0, keepdim=True)",
            f"F.bilinear({v}, {v}, {d.constant((2, width, width))})",
        )
    )


@draws("stack", "mean.dim", "matmul", weight=3)
def batch_in_the_middle(d: Draft) -> None:
    """Values whose batch is not the first axis until the end."""
    v = d.value(lambda shape: len(shape) == 1)
    width = d.shape(v)[0]
    weight, three = d.constant((d.number(1, 3), width)), d.constant((d.number(2, 4), width, 2))
    act = d.one_of("torch.relu", "torch.tanh", "torch.abs", "F.gelu")
    d.write(
        d.one_of(
            f"{act}({weight} @ {v}.T).T",
            f"({weight} @ {act}({v}.T).flip(0)).T",
            f"{act}(torch.matmul({v}, {three})).mean(0)",
            f"torch.stack([{act}({v}), {v}]).amax(0)",
            f"torch.vmap(lambda w: {act}({v} @ w))({three}).sum(0)",
            f"torch.stack([{act}(row) for row in {v}])",
        )
    )


@draws("tanh", "relu", weight=2)
def recurrent(d: Draft) -> None:
    """A recurrent network over the first axis."""
    v = d.value(lambda shape: len(shape) == 2)
    steps, width = d.shape(v)
    if steps > 4:
        raise UnfitError
    hidden, layers, both = d.number(1, 2), d.number(1, 2), d.chance()
    weights = []
    for layer in range(layers):
        inputs = width if layer == 0 else hidden * (1 + both)
        for _ in range(1 + both):
            weights += [d.constant((hidden, inputs)), d.constant((hidden, hidden)), d.constant((hidden,))]
            weights += [d.constant((hidden,))]
    start = f"torch.zeros({layers * (1 + both)}, len(x), {hidden}, dtype=torch.float64)"
    kind, listed = d.one_of("rnn_tanh", "rnn_relu"), ", ".join(weights)
    d.write(f"torch.{kind}({v}, {start}, [{listed}], True, {layers}, 0.0, False, {both}, True)[0]")
