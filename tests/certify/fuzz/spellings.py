"""Productions for less common operations: copies, scatters, resizing, constants of every shape."""

import math
from collections.abc import Callable

from tests.certify.fuzz.draft import Draft, UnfitError
from tests.certify.fuzz.productions import draws


def _sized(d: Draft, v: str) -> str:
    """The full shape of a value as an expression that is valid for every batch size."""
    return f"[{', '.join(['len(x)', *map(str, d.shape(v))])}]"


def _pick(d: Draft, axis: int, side: int) -> str:
    """An index along an axis as a tensor, with positions counted from either end, possibly repeated."""
    return f"torch.tensor({[d.number(-side, side - 1) for _ in range(d.number(1, 4))]})"


def _places(d: Draft, v: str, side: int, width: int) -> str:
    """Indices (len(x), width, ...) along the first axis of the samples, the same for every sample."""
    rest = d.shape(v)[1:]
    rows = [d.number(0, side - 1) for _ in range(width)]
    ones = ", ".join(["1"] * len(rest))
    shape = ", ".join(["len(x)", str(width), *map(str, rest)])
    return f"torch.tensor({rows}).view(1, {width}{', ' + ones if ones else ''}).expand({shape})"


@draws(
    *("_reshape_alias", "view_as", "reshape_as", "ravel", "flatten", "unflatten", "squeeze_copy", "unsqueeze_copy"),
    *("permute_copy", "transpose", "mT", "matrix_H", "adjoint", "moveaxis", "swapdims", "fliplr", "flipud", "rot90"),
    *("native_channel_shuffle", "conj", "conj_physical", "resolve_conj", "resolve_neg", "real", "negative", "type_as"),
    *("expand_as", "expand_copy", "broadcast_to", "tile", "native_dropout"),
    weight=4,
)
def reshaped_otherwise(d: Draft) -> None:
    """The same elements by other operations."""
    v = d.value(lambda shape: len(shape) > 0)
    shape, size = d.shape(v), math.prod(d.shape(v))
    rank = len(shape) + 1
    same_size = d.value(lambda other: math.prod(other) == size)
    order = [0, *d.order(rank - 1)]
    spelt = [
        *(f"{v}.view_as({same_size})", f"{v}.reshape_as({same_size})", f"{v}.ravel().view({_sized(d, same_size)})"),
        *(f"aten.flatten.using_ints({v}, 1, -1)", f"aten.squeeze_copy({v})", f"aten.unsqueeze_copy({v}, -1)"),
        *(f"aten.permute_copy({v}, {order})", f"torch.swapdims({v}, {d.axis(v)}, {d.axis(v)})"),
        *(f"torch.moveaxis({v}, {d.axis(v)}, {d.axis(v)})", f"torch.fliplr({v})", f"torch.flipud({v})"),
        *(f"torch.conj({v})", f"torch.conj_physical({v})", f"torch.resolve_conj({v})", f"torch.resolve_neg({v})"),
        *(f"torch.real({v})", f"torch.negative({v})", f"{v}.type_as({same_size})", f"{v}.transpose({d.axis(v)}, -1)"),
        *(f"aten.native_dropout({v}, 0.5, False)[0]", f"{v}.tile([{d.number(1, 2)}])", f"torch.tile({v}, (1, 2))"),
        f"{v}.flatten(1)[:, None].expand_as(torch.ones(len(x), 2, {size}))",
        f"torch.broadcast_to({v}[:, None], [len(x), 2, {', '.join(map(str, shape))}])",
        f"aten.expand_copy({v}.unsqueeze(1), [len(x), 2, {', '.join(map(str, shape))}])",
        f"aten._reshape_alias({v}.contiguous(), [len(x), {size}], [{size}, 1])",
        f"torch.unflatten({v}, -1, (-1, {d.one_of(*(k for k in (1, 2, 3) if shape[-1] % k == 0))}))",
    ]
    if rank > 2:
        spelt += [
            *(f"{v}.mT", f"{v}.mH", f"aten.matrix_H({v}.mT)", f"{v}.adjoint()"),
            *(f"torch.rot90({v}, {d.number(-1, 3)}, [-2, -1])", f"torch.rot90({v}, 1, [1, 2])"),
            f"aten.native_channel_shuffle({v}, {d.one_of(1, 2, shape[0])})",
        ]
    if len(shape) == 1:
        spelt += [f"{v}.mT.mT", f"torch.adjoint({v}.adjoint())", f"aten.matrix_H(aten.matrix_H({v}))"]
    d.write(d.one_of(*spelt))


@draws(
    *("slice", "slice_copy", "select", "select_copy", "narrow_copy", "diagonal", "diagonal_copy", "unfold", "index"),
    *("_unsafe_index", "gather", "take", "take_along_dim", "tril", "triu", "unsafe_split", "unsafe_chunk", "unbind"),
    *("tensor_split", "hsplit", "vsplit", "repeat_interleave"),
    weight=4,
)
def selected_otherwise(d: Draft) -> None:
    """Some of the elements by other operations."""
    v = d.value(lambda shape: len(shape) > 0 and 0 not in shape)
    shape, size, axis = d.shape(v), math.prod(d.shape(v)), d.axis(v)
    side = d.values[v].shape[axis]
    first, cut = shape[0], d.number(0, shape[0])
    mask = [bool(d.below(2)) for _ in range(first)]
    spelt = [
        *(f"aten.slice_copy({v}, {axis}, {d.number(0, side - 1)})", f"aten.slice_copy({v}, 1, -1, None, 2)"),
        *(f"aten.select_copy({v}, {axis}, -1)", f"aten.narrow_copy({v}, {axis}, {d.number(0, side - 1)}, 1)"),
        *(f"{v}[:, {_pick(d, 1, first)}]", f"aten._unsafe_index({v}, [None, {_pick(d, 1, first)}])"),
        *(f"{v}[:, torch.tensor({mask})]", f"{v}.unfold({axis}, {d.number(1, side)}, {d.number(1, 2)})"),
        *(f"torch.tril({v}, {d.number(-1, 1)})", f"torch.triu({v}, {d.number(-1, 1)})"),
        *(f"aten.unsafe_split({v}, {d.number(1, 2)}, {axis})", f"aten.unsafe_chunk({v}, {d.number(1, 2)}, {axis})"),
        *(f"torch.tensor_split({v}, [{cut}], 1)", f"torch.hsplit({v}, {d.one_of(1, first)})", f"torch.vsplit({v}, 3)"),
        *(f"torch.unbind({v}, {axis})", f"{v}.repeat_interleave(torch.tensor({[d.number(0, 2) for _ in mask]}), 1)"),
        f"torch.gather({v}, 1, {_places(d, v, first, d.number(1, 3))})",
        f"torch.take_along_dim({v}, {_places(d, v, first, d.number(1, 2))}, 1)",
        f"torch.take({v}, torch.arange(len(x))[:, None] * {size} + torch.tensor([{d.below(size)}, {d.below(size)}]))",
    ]
    if len(shape) > 1:
        spelt += [
            f"torch.diagonal({v}, {d.number(-1, 1)}, 1, 2)",
            f"aten.diagonal_copy({v}, {d.number(-1, 1)}, -1, 1)",
            f"{v}[:, {_pick(d, 1, first)}, torch.tensor([{d.below(shape[1])}])]",
            f"torch.tril({v}).triu(-1)",
        ]
    d.write(d.one_of(*spelt))


@draws(
    *("slice_scatter", "select_scatter", "diagonal_scatter", "index_copy", "scatter.src", "scatter.value", "copy"),
    *("index_put", "_unsafe_index_put", "masked_fill", "index_fill", "fill", "zero", "where", "block_diag"),
    weight=4,
)
def put_in_place(d: Draft) -> None:
    """A value with some elements replaced by other values or constants."""
    v = d.value(lambda shape: len(shape) > 0 and 0 not in shape)
    shape, number = d.shape(v), d.real()
    same = d.value(lambda other: other == shape)
    first, place = shape[0], d.below(shape[0])
    mask = [bool(d.below(2)) for _ in range(first)]
    wide = f"torch.tensor({mask}).view({[first, *[1] * (len(shape) - 1)]})"
    part = f"{same}[:, {place}:{place + 1}]"
    spelt = [
        *(f"torch.slice_scatter({v}, {part}, 1, {place}, {place + 1})", f"torch.masked_fill({v}, {wide}, {number})"),
        f"torch.select_scatter({v}, {same}[:, {place}], 1, {place - first})",
        *(f"torch.index_copy({v}, 1, torch.tensor([{place}]), {part})", f"torch.fill({v}, {number}) + {same}"),
        *(f"torch.index_fill({v}, 1, torch.tensor([{place}, 0]), {number})", f"aten.zero({v}) + {same}"),
        *(f"torch.scatter({v}, 1, {_places(d, v, first, 1)}, {part})", f"aten.copy({v}, {same})"),
        f"torch.scatter({v}, 1, {_places(d, v, first, d.number(1, first))}, {number})",
        f"aten.index_put({v}, [None, torch.tensor([{place}])], {part})",
        f"aten._unsafe_index_put({v}, [None, torch.tensor([{place - first}])], {part})",
        f"aten.index_put({v}, [None, torch.tensor([{place}])], torch.tensor({number}, dtype=torch.float64))",
        f"torch.where({wide}, {v}, {same})",
        f"torch.where({wide}, {v}, {number})",
        f"torch.where({wide}, {d.broadcasting(v)}, {v})",
        f"torch.block_diag({v}.flatten(1), {d.constant((1, 2))})[:len(x)]",
    ]
    if len(shape) > 1:
        least = min(shape[0], shape[1])
        spelt.append(f"torch.diagonal_scatter({v}, torch.diagonal({same}, 0, 1, 2)[..., :{least}], 0, 1, 2)")
    d.write(d.one_of(*spelt))


@draws(
    *("upsample_nearest1d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
    *("_upsample_nearest_exact3d", "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad3d", "replication_pad3d", "_pad_circular"),
    *("col2im", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "conv_transpose3d", "convolution"),
    weight=4,
)
def resized_otherwise(d: Draft) -> None:
    """Signals, images and volumes resized, padded, assembled from windows, or convolved by the general operation."""
    v = d.value(lambda shape: len(shape) in (2, 3, 4) and 0 not in shape)
    shape = d.shape(v)
    rank = len(shape) - 1
    sides = [d.number(1, 3) for _ in range(rank)]
    size, align = f"({', '.join(map(str, sides))},)", d.chance()
    weight = d.constant((shape[0], d.number(1, 2), *[d.number(1, 2)] * rank))
    stride, output = d.number(1, 2), d.number(0, 1)
    settings = f"None, {[stride] * rank}, {[d.number(0, 1)] * rank}, {[d.number(1, 2)] * rank}"
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[rank]
    spelt = [
        f"F.interpolate({v}, size={size})",
        f"F.interpolate({v}, size={size}, mode='nearest-exact')",
        f"F.interpolate({v}, size={size}, mode={mode!r}, align_corners={align})",
        f"F.interpolate({v}, scale_factor=2, mode={mode!r})",
        f"aten.convolution({v}, {weight}, {settings}, True, {[output] * rank}, 1)",
        f"aten.convolution({v}, {weight}.transpose(0, 1), {settings}, False, {[0] * rank}, 1)",
        f"F.pad({v}, {[d.number(0, 1) for _ in range(2 * rank)]}, mode='circular')",
        f"aten._pad_circular({v}, {[d.number(0, 1) for _ in range(2 * rank)]})",
    ]
    if rank == 1:
        kernel = d.one_of(*(k for k in (1, 2, 4) if shape[0] % k == 0))
        spelt.append(f"F.fold({v}, ({shape[1]}, {kernel}), (1, {kernel}))")
        spelt.append(f"F.fold({v}, (1, {shape[1] + kernel - 1}), (1, {kernel}))")
    if rank == 2:
        spelt += [
            f"F.interpolate({v}, size={size}, mode='bilinear', antialias=True)",
            f"F.interpolate({v}, size={size}, mode='bicubic', antialias=True, align_corners={align})",
        ]
    if rank == 3:
        pads = [d.number(0, 1) for _ in range(6)]
        spelt += [
            *(f"F.pad({v}, {pads}, mode={mode!r})" for mode in ("reflect", "replicate")),
            *(f"F.adaptive_avg_pool3d({v}, {size})", f"aten._adaptive_avg_pool3d({v}, {sides})"),
            f"F.conv_transpose3d({v}, {weight}, None, {stride})",
        ]
    d.write(d.one_of(*spelt))


@draws(
    *("addbmm", "addmv", "baddbmm", "bmm", "mv", "dot", "vdot", "einsum", "tensordot", "cumsum", "lerp", "addcmul"),
    *("addcdiv", "subtract"),
    weight=4,
)
def multiplied_otherwise(d: Draft) -> None:
    """Products with constant matrices, vectors and numbers in all forms of torch."""
    v = d.value(lambda shape: len(shape) in (1, 2, 3) and 0 not in shape)
    shape = d.shape(v)
    width, out, alpha, beta = shape[-1], d.number(1, 3), d.real(), d.real()
    matrix, vector, same = d.constant((width, out)), d.constant((width,)), d.constant((1, *shape))
    axis = d.number(1, len(shape))
    letters = "cdef"[: len(shape)]
    spelt = [
        *(
            f"torch.cumsum({v}, {axis})",
            f"torch.cumsum({v}, {-1}, dtype=torch.float64)",
            f"torch.matmul({v}, {vector})",
        ),
        *(f"torch.lerp({v}, {same}, {alpha})", f"torch.lerp({same}, {v}, {same})", f"torch.subtract({v}, {same})"),
        *(f"torch.lerp({v}, 2 * {v}, {same})", f"torch.subtract({same}, {v}, alpha={alpha})"),
        *(f"torch.addcmul({v}, {v}, {same}, value={alpha})", f"torch.addcdiv({v}, {v}, {same} + 3.0, value={beta})"),
        *(f"torch.addcmul({same}, {same}, {v})", f"torch.addcdiv({v}, {same}, {same} - 3.0)"),
        f"torch.einsum('n{letters},{letters[-1]}z->n{letters[:-1]}z', {v}, {matrix})",
        f"torch.einsum('z{letters[-1]},n{letters}->nz{letters[:-1]}', {matrix}.T, {v})",
        f"torch.einsum('n{letters}->n{letters[::-1]}', {v})",
        f"torch.einsum('n{letters},n{letters}->n', {v}, {same}.expand({_sized(d, v)}))",
        f"torch.einsum('{letters},n{letters}->n{letters}', {same}[0], {v})",
        f"torch.tensordot({v}, {matrix}, 1)",
        f"torch.tensordot({matrix}, {v}, ([0], [-1])).movedim(1, 0)" if len(shape) == 1 else f"{v} @ {matrix}",
    ]
    if len(shape) == 1:
        spelt += [
            *(f"torch.mv({v}, {vector})", f"torch.addmv({v}[:, 0], {v}, {vector}, beta={beta}, alpha={alpha})"),
            *(f"torch.dot({v}[:, 0], {v}[:, 0].detach()) + {v}[:, 0]", f"torch.vdot({vector}, {vector}) * {v}"),
        ]
    if len(shape) == 2:
        batch = f"{matrix}.expand(len(x), {width}, {out})"
        spelt += [
            *(f"torch.bmm({v}, {batch})", f"torch.bmm({batch}.mT, {v}.mT)"),
            *(f"torch.baddbmm({v} @ {matrix}, {v}, {batch}, beta={beta}, alpha={alpha})",),
            f"torch.addbmm({matrix}, {matrix}[None, :1].mT, {matrix}[None, :1]) + 0 * {v}[:, :1, :1]"
            if out == 1
            else f"torch.addbmm(torch.zeros({shape[0]}, {out}), {v}, {batch})",
        ]
    d.write(d.one_of(*spelt))


@draws(
    *("group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"),
    "native_batch_norm",
    weight=3,
)
def normalised_otherwise(d: Draft) -> None:
    """Normalisation by the sample's own statistics, over groups and axes of any size, in every form."""
    v = d.value(lambda shape: len(shape) > 0 and 0 not in shape)
    shape = d.shape(v)
    last = list(shape[-d.number(1, len(shape)) :])
    gamma, channels = d.constant(last), d.constant((shape[0],))
    eps, axis = d.one_of(1e-5, 1.0, 1e-12, 1e3), d.axis(v)
    centred = d.one_of(v, f"({v} - {v}.mean({axis}, keepdim=True))")
    groups = d.one_of(*(k for k in (1, 2, 3, shape[0]) if shape[0] % k == 0))
    pixels = math.prod(shape[1:])
    variance = f"({channels}.abs() + 1e-3)"
    d.write(
        d.one_of(
            f"F.layer_norm({v}, {last}, {gamma}, {gamma}, {eps})",
            f"F.normalize({centred}, dim={axis}, eps={eps})",
            f"(lambda z: z / (z.square().mean({axis}, keepdim=True) + {eps}).sqrt())({centred})",
            f"(lambda z: z * torch.rsqrt(z.var({axis}, correction=0, keepdim=True) + {eps}))({centred})",
            f"aten.native_layer_norm({v}, {last}, {gamma}, None, {eps})[0]",
            f"F.group_norm({v}, {groups}, {channels}, {channels}, {eps})",
            f"aten.native_group_norm({v}, {channels}, None, len(x), {shape[0]}, {pixels}, {groups}, {eps})[0]",
            f"F.rms_norm({v}, {last}, {gamma}, {eps})",
            f"F.rms_norm({v}, {last}, {gamma})",
            f"aten._fused_rms_norm({v}, {last}, {gamma}, {eps})[0]",
            f"aten.native_batch_norm({v}, {channels}, None, {channels}, {variance}, False, 0.1, {eps})[0]",
            f"F.instance_norm({v}, None, None, {channels}, None, True, 0.1, {eps})",
        )
    )


@draws(
    *("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "scalar_tensor", "eye", "arange"),
    *("full", "zeros", "ones"),
    weight=3,
)
def beside_made_constants(d: Draft) -> None:
    """Sums and products with constants created from the value's shape."""
    v = d.value(lambda shape: len(shape) > 0 and 0 not in shape)
    shape, number = d.shape(v), d.real()
    whole = _sized(d, v)
    made = d.one_of(
        *(f"torch.zeros_like({v})", f"torch.ones_like({v})", f"torch.full_like({v}, {number})"),
        *(f"{v}.new_zeros({whole})", f"{v}.new_ones({whole})", f"{v}.new_full({whole}, {number})"),
        *(f"torch.scalar_tensor({number}, dtype=torch.float64)", f"torch.arange({shape[-1]}).double()"),
        *(f"torch.full({whole}, {number}, dtype=torch.float64)", f"torch.zeros({whole}).double()"),
        *(f"torch.ones({list(shape)}, dtype=torch.float64)", f"torch.ones({[1, *shape]}).double() / 3"),
    )
    eye = f"torch.eye({shape[-1]}, {d.number(1, 3)}, dtype=torch.float64)"
    spelt: list[str] = [
        *(f"{v} + {made}", f"{v} * {made}", f"{v} - {made}", f"{made} - {v}", f"torch.maximum({v}, {made})"),
        *(f"{v} / ({made} + 2)", f"{v} @ {eye}", f"torch.cat([{v}, {v}.new_zeros({whole})], -1)"),
        f"torch.cat([torch.full({whole}, {number}, dtype=torch.float64), {v}, {v}], 1)",
        f"torch.stack([{v}, torch.ones_like({v}), {v}], {d.number(1, len(shape))})",
        f"torch.where({v} > {made}, {v}, {made})",
    ]
    d.write(d.one_of(*spelt))


@draws(
    *(
        "index_add",
        "scatter_add",
        "scatter_reduce",
        "diff",
        "kron",
        "kthvalue",
        "median.dim",
        "nanmedian.dim",
        "aminmax",
        "logaddexp",
    ),
    *("hypot", "linalg_vector_norm", "norm.ScalarOpt_dim"),
    weight=4,
)
def put_together_otherwise(d: Draft) -> None:
    """Scattered sums, differences of neighbours, order statistics, norms, and functions of two values."""
    v = d.value(lambda shape: len(shape) > 0 and 0 not in shape)
    shape, axis, alpha = d.shape(v), d.axis(v), d.real()
    side, first = d.values[v].shape[axis], shape[0]
    same = d.value(lambda other: other == shape)
    width = d.number(1, 4)
    slopes = d.constant((first, *[1] * (len(shape) - 1)))
    spelt = [
        f"torch.index_add({v}, {axis}, torch.tensor([{d.below(side)}]), {same}.narrow({axis}, 0, 1), alpha={alpha})",
        f"torch.diff({v}, n={d.number(1, 2)}, dim={axis})",
        f"torch.scatter_add({v}, 1, {_places(d, v, first, first)}, {same})",
        f"torch.scatter_reduce({v}, 1, {_places(d, v, first, first)}, {same}, {d.one_of('sum', 'mean')!r}, "
        f"include_self={bool(d.below(2))})",
        f"aten.index_put({v}, [None, torch.tensor([0, {d.below(first)}])], {same}[:, :1], True)",
        *(f"torch.diff({v}, dim={axis}, append={same})", f"torch.kron({v}, {d.constant([1] * len(shape) + [width])})"),
        *(f"torch.kthvalue({v}, {d.number(1, side)}, {axis})[0]", f"torch.median({v}, {axis})[0]"),
        *(f"torch.nanmedian({v}, {axis}, True)[0]", f"torch.aminmax({v}, dim={axis}, keepdim=True)[{d.below(2)}]"),
        *(f"torch.logaddexp({v}, {same})", f"torch.hypot({v}, {same})", f"{v}.norm(dim={axis}, keepdim=True)"),
        *(f"torch.linalg.vector_norm({v}, {order}, {axis})" for order in ("1", "2", "float('inf')")),
        *(f"torch.where({v} > 0, {v}, {slopes} * {v})", f"{v} * torch.sigmoid({slopes} * {v})"),
        f"torch.where({v} > {slopes}, {alpha} * ({v} - {slopes}), {v} - {slopes})",
        *(f"torch.where({v} > {same}, {v}, {same})", f"torch.where({same} <= {v}, {same}, {v})"),
        *(f"torch.sqrt({v}.square().sum({axis}))", f"({v} ** 2).mean({axis}, keepdim=True).add(0.1).sqrt()"),
        *(f"{v} / (1 + torch.exp(-{slopes} * {v}))", f"torch.log(1 + torch.exp({v}))"),
        *(f"torch.exp({v}) / (torch.exp({v}) + 1)", f"{v} * ({v} > 0).float()"),
        f"aten.index_put({v}, [{v} < 0], torch.tensor(0.0, dtype=torch.float64))",
    ]
    d.write(d.one_of(*spelt))


@draws("add", "cat", "maximum", weight=3)
def three_times(d: Draft) -> None:
    """A value that is used three times or more, in one line."""
    v = d.value(lambda shape: len(shape) > 0)
    shape = d.shape(v)
    steps: tuple[Callable[[str], str], ...] = (
        lambda u: f"torch.relu({u})",
        lambda u: f"{u}.flip([-1])",
        lambda u: f"(-{u})",
        lambda u: f"(0.5 * {u})",
        lambda u: f"({u} - {u}.mean(1, keepdim=True))",
        lambda u: f"torch.abs({u} - 1.0)",
        lambda u: f"F.pad({u}[..., 1:], (0, 1))" if shape[-1] > 1 else u,
        lambda u: f"{u}.sort(-1).values",
    )
    a, b, c = (d.one_of(*steps)(d.one_of(v, d.one_of(*steps)(v))) for _ in range(3))
    d.write(
        d.one_of(
            *(f"{a} + {b} + {c}", f"{v} + {a} - {b} + {v}", f"torch.cat([{a}, {v}, {b}, {v}], 1)"),
            *(f"torch.maximum(torch.maximum({a}, {b}), {c})", f"torch.minimum({v}, {a} + {b})"),
            f"torch.stack([{a}, {b}, {c}], -1).sort(-1).values",
            f"torch.stack([{a}, {b}, {c}], 1).mean(1)",
        )
    )
    if not shape:
        raise UnfitError
