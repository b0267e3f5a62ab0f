"""Productions for operations that move, copy, drop or pad elements, and for concatenations."""

from tests.certify.fuzz.draft import Draft, UnfitError
from tests.certify.fuzz.productions import draws


@draws(
    *("view", "_unsafe_view", "reshape", "view_copy", "flatten.using_ints", "unflatten.int", "squeeze", "unsqueeze"),
    weight=4,
)
def reshaped(d: Draft) -> None:
    """The same elements in another shape."""
    v = d.value()
    size, axis = d.values[v][0].numel(), d.number(1, len(d.shape(v)) + 1)
    first = d.one_of(*(k for k in (1, 2, 3, size) if k and size % k == 0), 1)
    target = d.one_of(f"[-1, {size}]", f"[-1, {first}, {size // first}]", f"[-1, {first}, {size // first}, 1]")
    spelt = [
        *(f"{v}.reshape({target})", f"{v}.contiguous().view({target})", f"aten.view_copy({v}.contiguous(), {target})"),
        *(f"aten._unsafe_view({v}.contiguous(), {target})", f"{v}.unsqueeze({axis})", f"{v}.unsqueeze(-1)"),
    ]
    if d.shape(v):
        side = d.shape(v)[0]
        k = d.one_of(*(k for k in (1, 2, 3, side) if k and side % k == 0), 1)
        spelt += [f"{v}.flatten(1)", f"{v}.squeeze({d.axis(v)})", f"{v}.unflatten(1, ({k}, -1))", f"{v}.flatten(-1)"]
    d.write(d.one_of(*spelt))


@draws("permute", "transpose.int", "t", "numpy_T", "movedim", "swapaxes", "flip", "roll", "channel_shuffle", weight=3)
def permuted(d: Draft) -> None:
    """The same elements in another order."""
    v = d.value(lambda shape: len(shape) > 0)
    rank = d.values[v].ndim
    order = d.order(rank - 1)
    spelt = [
        *(f"{v}.permute(0, {', '.join(map(str, order))})", f"{v}.transpose({d.axis(v)}, {d.axis(v)})"),
        *(f"torch.movedim({v}, {d.axis(v)}, {d.axis(v)})", f"torch.swapaxes({v}, {d.axis(v)}, {d.axis(v)})"),
        *(f"{v}.flip({d.axes(v)})", f"torch.roll({v}, {d.number(-3, 3)}, {d.axis(v)})"),
        *(f"aten.t({v}.flatten(1).t())", f"aten.numpy_T({v}.flatten(1).T)"),
    ]
    if rank > 2:
        spelt.append(f"F.channel_shuffle({v}, {d.one_of(1, 2, d.shape(v)[0])})")
    d.write(d.one_of(*spelt))


@draws("slice.Tensor", "select.int", "narrow", "unbind.int", "index.Tensor", "index_select", weight=5)
def selected(d: Draft) -> None:
    """Some of the elements, possibly repeated, or none."""
    v = d.value(lambda shape: len(shape) > 0)
    axis = d.axis(v)
    place = axis % d.values[v].ndim
    side = d.values[v].shape[place]
    if not side:
        raise UnfitError
    start, length = d.number(0, side - 1), d.number(1, side)
    index = [d.number(-side, side - 1) for _ in range(d.number(1, 4))]
    here = ":, " * place
    d.write(
        d.one_of(
            f"{v}[{here}{start}:]",
            f"{v}[{here}:{length}]",
            f"{v}[{here}{start - side}:{length}]",
            f"{v}[{here}::{length}]",
            f"{v}[{here}{start}]",
            f"{v}.select({axis}, {start - side})",
            f"{v}.narrow({axis}, {start}, {min(length, side - start)})",
            f"{v}.unbind({axis})",
            f"{v}[{here}{index}]",
            f"torch.index_select({v}, {axis}, torch.tensor({[k % side for k in index]}))",
            f"{v}[..., None]",
        )
    )


@draws("split", "split_with_sizes", "split.Tensor", "chunk", weight=3)
def split(d: Draft) -> None:
    """Several parts, each a separate value."""
    v = d.value(lambda shape: len(shape) > 0)
    axis, size = d.axis(v), d.number(1, 2)
    side = d.values[v].shape[axis]
    cut = d.number(0, side)
    d.write(
        d.one_of(
            f"torch.split({v}, {size}, {axis})",
            f"torch.split({v}, {[cut, side - cut]}, {axis})",
            f"torch.chunk({v}, {size}, {axis})",
            f"torch.tensor_split({v}, {size}, {axis})",
        )
    )


@draws("expand", "repeat", "repeat_interleave.self_int", weight=2)
def copied(d: Draft) -> None:
    """Repeated elements."""
    v = d.value()
    lead = d.number(1, 3)
    grown = [side if side > 1 or d.chance() else 3 for side in d.shape(v)]
    factors = [d.number(1, 2) for _ in d.shape(v)]
    d.write(
        d.one_of(
            f"{v}.expand({['len(x)', *grown]!r})".replace("'", ""),
            f"{v}[:, None].expand({['len(x)', lead, *d.shape(v)]!r})".replace("'", ""),
            f"{v}.repeat({[1, *factors]})",
            f"{v}[:, None].repeat({[1, lead, *factors]})",
            f"{v}.repeat_interleave(2, {d.axis(v) if d.shape(v) else 0})",
        )
    )


@draws(
    *("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    weight=4,
)
def padded(d: Draft) -> None:
    """Zeros, other constants or copies around the edges; negative padding crops."""
    v = d.value(lambda shape: len(shape) > 0)
    rank = len(d.shape(v))
    count = d.number(1, min(rank, 3))
    pads = [d.number(-1, 2) for _ in range(2 * count)]
    copies = [abs(p) for p in pads[: 4 if rank == 3 else 2]]
    mode = d.one_of("constant", "reflect", "replicate", "circular")
    if mode == "constant":
        d.write(f"F.pad({v}, {pads}, value={d.one_of(0.0, 1.0, -30.0)})")
    else:
        d.write(f"F.pad({v}, {copies}, mode={mode!r})")


@draws("pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "im2col", "upsample_bilinear2d", weight=2)
def resized(d: Draft) -> None:
    """Images resized by copying."""
    v = d.value(lambda shape: len(shape) == 3)
    size = f"({d.number(1, 4)}, {d.number(1, 4)})"
    d.write(
        d.one_of(
            f"F.interpolate({v}, scale_factor=2)",
            f"F.interpolate({v}, size={size})",
            f"F.interpolate({v}, size={size}, mode='bilinear', align_corners={d.chance()})",
            f"F.interpolate({v}, size={size}, mode='nearest-exact')",
            f"F.pixel_shuffle({v}, {d.number(1, 2)})",
            f"F.pixel_unshuffle({v}, {d.number(1, 2)})",
            f"F.unfold({v}, {d.number(1, 2)}, padding={d.number(0, 1)}, stride={d.number(1, 2)})",
        )
    )


@draws("cat", "concat", "concatenate", "stack", weight=4)
def side_by_side(d: Draft) -> None:
    """A concatenation of values, repeated values and constants."""
    v = d.value()
    shape = d.shape(v)
    others = [d.value(lambda other: other == shape) for _ in range(d.number(0, 2))]
    parts = [v, *others]
    if d.number(0, 3) == 0:
        parts.insert(
            d.number(0, len(parts)), d.one_of(f"torch.zeros_like({v})", f"(0 * {v} + 1)", f"{v}[:, :0]" if shape else v)
        )
    listed = ", ".join(parts)
    if not shape or d.number(0, 2) == 0:
        d.write(f"torch.stack([{listed}], {d.number(1, len(shape) + 1)})")
    else:
        d.write(f"torch.{d.one_of('cat', 'concat', 'concatenate')}([{listed}], {d.axis(v)})")
