"""Productions for pooling, means, sums, sorts and extrema over axes."""

from tests.certify.fuzz.draft import Draft
from tests.certify.fuzz.productions import draws


@draws("mean.dim", "mean", "sum.dim_IntList", "sum", weight=4)
def reduced(d: Draft) -> None:
    """A mean or a sum over axes, or a value minus them."""
    v = d.value(lambda shape: len(shape) > 0)
    keep, axes = d.chance(), d.axes(v)
    name = d.one_of("mean", "sum", "sum", "nanmean", "std", "prod", "norm", "cumsum") if d.number(0, 9) == 0 else "mean"
    dtype = d.one_of("", "", "", ", dtype=torch.float64", ", dtype=torch.float32", ", dtype=torch.float16")
    if name in ("prod", "cumsum"):
        d.write(f"{v}.{name}({axes[0]})")
        return
    if name not in ("mean", "sum"):
        d.write(f"torch.{name}({v}, dim={axes}, keepdim={keep})")
        return
    name = d.one_of("mean", "sum")
    inner = f"{v}.{name}({axes}, keepdim={keep}{dtype})"
    d.write(d.one_of(inner, inner, f"{v} - {v}.{name}({axes}, keepdim=True)"))


@draws("amax", "amin", "max.dim", "min.dim", "sort", "sort.stable", "msort", "topk", weight=5)
def extremes(d: Draft) -> None:
    """The largest, the smallest, or all in order."""
    v = d.value(lambda shape: len(shape) > 0)
    axis, axes, keep = d.axis(v), d.axes(v), d.chance()
    side = d.values[v].shape[axis]
    d.write(
        d.one_of(
            f"torch.sort({v}, dim={axis}).values",
            f"torch.sort({v}, dim={axis}, descending=True, stable=True).values",
            f"torch.topk({v}, {d.number(1, max(1, side))}, dim={axis}).values",
            f"torch.topk({v}, 1, dim={axis}, largest=False).values",
            f"torch.amax({v}, dim={axes}, keepdim={keep})",
            f"torch.amin({v}, dim={axis}, keepdim={keep})",
            f"torch.max({v}, dim={axis}, keepdim={keep}).values",
            f"torch.min({v}, dim={axis}, keepdim={keep}).values",
            f"{v} - {v}.amax({axes}, keepdim=True)",
            f"torch.msort({v})",
            f"torch.median({v}, dim={axis}).values",
        )
    )


@draws("softmax", "_softmax", "logsumexp", "_log_softmax", "log_softmax", weight=2)
def soft_extremes(d: Draft) -> None:
    """softmax and logsumexp."""
    v = d.value(lambda shape: len(shape) > 0)
    axis = d.axis(v)
    d.write(
        d.one_of(
            f"torch.softmax({v}, {axis})",
            f"aten._softmax({v}, {axis}, False)",
            f"torch.softmax({v}, {axis}, dtype={d.one_of('torch.float64', 'torch.float32')})",
            f"torch.logsumexp({v}, {d.axes(v)}, keepdim={d.chance()})",
            f"torch.log_softmax({v}, {axis})",
        )
    )


@draws(
    *("max_pool2d", "max_pool1d", "max_pool2d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool1d"),
    weight=4,
)
def max_pooled(d: Draft) -> None:
    """The largest in every window."""
    v = d.value(lambda shape: len(shape) in (2, 3))
    flat = len(d.shape(v)) == 2
    kernel, stride = d.number(1, 3), d.number(1, 3)
    settings = f"{kernel}, {stride}, {d.number(0, kernel // 2)}, {d.number(1, 2)}, {d.chance()}"
    if flat:
        d.write(d.one_of(f"F.max_pool1d({v}, {settings})", f"F.adaptive_max_pool1d({v}, {kernel})"))
        return
    shape = f"({kernel}, {d.number(1, 3)}), ({stride}, {d.number(1, 3)})"
    d.write(
        d.one_of(
            f"F.max_pool2d({v}, {settings})",
            f"F.max_pool2d({v}, {shape})",
            f"aten.max_pool2d_with_indices({v}, [{kernel}, {kernel}], [{stride}, {stride}])[0]",
            f"F.adaptive_max_pool2d({v}, ({kernel}, {stride}))",
        )
    )


@draws(
    *("avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d"),
    weight=4,
)
def averaged(d: Draft) -> None:
    """The mean of every window."""
    v = d.value(lambda shape: len(shape) in (2, 3))
    kernel, stride = d.number(1, 3), d.number(1, 3)
    settings = f"{kernel}, {stride}, {d.number(0, kernel // 2)}, {d.chance()}, {d.chance()}"
    if len(d.shape(v)) == 2:
        d.write(d.one_of(f"F.avg_pool1d({v}, {settings})", f"F.adaptive_avg_pool1d({v}, {kernel})"))
        return
    d.write(
        d.one_of(
            f"F.avg_pool2d({v}, {settings})",
            f"F.avg_pool2d({v}, {settings}, divisor_override={d.number(1, 3)})",
            f"F.avg_pool2d({v}, ({kernel}, {stride}))",
            f"F.adaptive_avg_pool2d({v}, ({kernel}, {stride}))",
            f"aten._adaptive_avg_pool2d({v}, [{kernel}, 1])",
        )
    )


@draws("max_pool3d", "max_pool3d_with_indices", "adaptive_max_pool3d", "avg_pool3d", weight=1)
def pooled_volumes(d: Draft) -> None:
    """Pooling over volumes."""
    v = d.value(lambda shape: len(shape) == 4)
    kernel, stride = d.number(1, 2), d.number(1, 2)
    d.write(
        d.one_of(
            f"F.max_pool3d({v}, {kernel}, {stride}, {d.number(0, kernel // 2)})",
            f"aten.max_pool3d_with_indices({v}, [{kernel}] * 3, [{stride}] * 3)[0]",
            f"F.adaptive_max_pool3d({v}, {kernel})",
            f"F.avg_pool3d({v}, {kernel}, {stride})",
        )
    )
