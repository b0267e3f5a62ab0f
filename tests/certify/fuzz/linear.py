"""Productions for dense layers, convolutions, normalisation and modules that state their own bound."""

import torch
from torch import Tensor, nn

from robustres.certify import Bound
from robustres.certify.maps.sector import GroupSort
from tests.certify.fuzz.draft import Draft, UnfitError
from tests.certify.fuzz.productions import draws


class Halved(nn.Module):
    """States its own bound."""

    def forward(self, x: Tensor) -> Tensor:
        """Half of |x|."""
        return 0.5 * x.abs()

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """Exact."""
        return Bound(0.0, 0.5, "stated")


class Pairs(nn.Module):
    """Sorts neighbouring channels in pairs and states this."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) sorted within (2i, 2i + 1)."""
        return x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1, 2)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """Sorting is nonexpansive."""
        return Bound(0.0, 1.0, "stated")

    def sorted_groups(self) -> GroupSort:
        """Neighbours."""
        return GroupSort(2, "adjacent")


@draws("linear", "addmm", "mm", "matmul", weight=8)
def dense(d: Draft) -> None:
    """A dense layer on the last axis."""
    v = d.value(lambda shape: len(shape) > 0)
    width, out = d.shape(v)[-1], d.number(1, 4)
    weight = d.constant((out, width))
    bias = d.constant((out,))
    spelt = [
        *(f"F.linear({v}, {weight})", f"F.linear({v}, {weight}, {bias})", f"{v} @ {weight}.T"),
        f"torch.matmul({v}, {weight}.mT)",
    ]
    if len(d.shape(v)) == 1:
        spelt += [
            f"torch.addmm({bias}, {v}, {weight}.T)",
            f"torch.addmm({bias}, {v}, {weight}.T, beta={d.real()}, alpha={d.real()})",
            f"torch.mm({v}, {weight}.T)",
            f"({weight} @ {v}.T).T",
        ]
    spelt += [f"torch.einsum('...c,dc->...d', {v}, {weight})", f"torch.tensordot({v}, {weight}, dims=([-1], [1]))"]
    d.write(d.one_of(*spelt))


@draws("linear", "flatten.using_ints", weight=4)
def dense_on_everything(d: Draft) -> None:
    """A dense layer on the flattened value."""
    v = d.value(lambda shape: len(shape) > 0)
    weight = d.constant((d.number(1, 4), d.values[v][0].numel()))
    d.write(f"F.linear({v}.flatten(1), {weight})")


@draws("conv2d", weight=8)
def convolution(d: Draft) -> None:
    """A convolution of images of any size, with any of its settings."""
    v = d.value(lambda shape: len(shape) == 3)
    channels, *_ = d.shape(v)
    if d.chance():
        side = d.one_of(1, 3)
        weight, out = d.constant((channels, channels, side, side)), channels
        settings = f"padding={side // 2}"
    else:
        groups = d.one_of(*(g for g in (1, 2, 3, channels) if channels % g == 0))
        out = groups * d.number(1, 2)
        weight = d.constant((out, channels // groups, d.number(1, 3), d.number(1, 3)))
        padding = d.one_of(f"({d.number(0, 2)}, {d.number(0, 2)})", "'same'", "'valid'")
        stride = "1" if padding == "'same'" else f"({d.number(1, 3)}, {d.number(1, 3)})"
        dilation = f"({d.number(1, 2)}, {d.number(1, 2)})"
        settings = f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}"
    bias = d.constant((out,)) if d.chance() else "None"
    inside = d.one_of(v, f"F.pad({v}, (1, 1, 0, 1), mode={d.one_of('circular', 'reflect', 'replicate', 'constant')!r})")
    d.write(f"F.conv2d({inside if settings[0] != 'p' else v}, {weight}, {bias}, {settings})")


@draws("conv_transpose2d.input", "conv_transpose2d")
def transposed_convolution(d: Draft) -> None:
    """Its transpose."""
    v = d.value(lambda shape: len(shape) == 3)
    channels = d.shape(v)[0]
    groups = d.one_of(*(g for g in (1, 2, channels) if channels % g == 0))
    out = d.number(1, 2)
    weight = d.constant((channels, out, d.number(1, 3), d.number(1, 2)))
    pair = lambda low, high: f"({d.number(low, high)}, {d.number(low, high)})"  # noqa: E731
    bias = "None" if d.chance() else d.constant((groups * out,))
    settings = f"stride={pair(1, 3)}, padding={pair(0, 1)}, output_padding={pair(0, 1)}, dilation={pair(1, 2)}"
    d.write(f"F.conv_transpose2d({v}, {weight}, {bias}, groups={groups}, {settings})")


@draws("conv1d", "conv3d", "conv_transpose1d", weight=2)
def other_convolutions(d: Draft) -> None:
    """Of signals and volumes."""
    v = d.value(lambda shape: len(shape) in (2, 4))
    channels, rank = d.shape(v)[0], len(d.shape(v)) - 1
    weight = d.constant((channels, channels, *[d.number(1, 2)] * rank))
    bias = d.one_of("None", d.constant((channels,)))
    name = d.one_of(f"conv{rank}d", f"conv{rank}d", f"conv_transpose{rank}d")
    settings = f"stride={d.number(1, 2)}, padding={d.number(0, 1)}, dilation={d.number(1, 2)}"
    d.write(f"F.{name}({v}, {weight}, {bias}, {settings})")


@draws("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm", weight=3)
def normalised(d: Draft) -> None:
    """Batch normalisation by its running statistics, and the normalisations that divide by their own input."""
    v = d.value(lambda shape: len(shape) > 0)
    shape = d.shape(v)
    c = (shape[0],)
    mean, gamma, beta = d.constant(c), d.constant(c), d.constant(c)
    eps = d.one_of(1e-5, 1.0, 1e-12)
    variance = d.constant(
        c, values=torch.rand(c, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))
    )
    statistics = d.one_of(f"{gamma}, {beta}, False, 0.1, {eps}", f"None, None, False, 0.1, {eps}")
    d.write(
        d.one_of(
            f"F.batch_norm({v}, {mean}, {variance}, {statistics})",
            f"aten._native_batch_norm_legit_no_training({v}, {gamma}, {beta}, {mean}, {variance}, 0.1, {eps})[0]",
            f"F.instance_norm({v}, {mean}, {variance}, {gamma}, {beta}, False, 0.1, {eps})",
            f"F.layer_norm({v}, {list(shape)}, None, None, {eps})",
            f"F.group_norm({v}, 1, {gamma}, {beta}, {eps})",
            f"F.rms_norm({v}, {[shape[-1]]}, None, {eps})",
        )
    )


@draws("robustres.stated", weight=1)
def stated(d: Draft) -> None:
    """A module that states its own bound."""
    v = d.value(lambda shape: len(shape) > 0)
    module: nn.Module = d.one_of(Halved(), Pairs())
    if isinstance(module, Pairs) and d.shape(v)[0] % 2:
        raise UnfitError
    name = f"part{sum(1 for _ in d.program.children())}"
    d.program.add_module(name, module)
    d.write(f"self.{name}({v})")
