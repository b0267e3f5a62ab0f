"""Productions for compound structures: residual blocks, branches, MaxMin, runs of linear maps."""

from collections.abc import Callable

from tests.certify.fuzz.draft import Draft, UnfitError
from tests.certify.fuzz.productions import draws


def mixed(d: Draft, v: str) -> str:
    """A linear map of the value that keeps its shape."""
    shape = d.shape(v)
    if len(shape) == 3 and d.chance():
        side = d.one_of(1, 3)
        weight = d.constant((shape[0], shape[0], side, side))
        return d.write(f"F.conv2d({v}, {weight}, padding={side // 2})")
    if shape:
        return d.write(f"F.linear({v}, {d.constant((shape[-1], shape[-1]))})")
    return d.write(f"{d.real()} * {v}")


def moved(d: Draft, v: str) -> str:
    """Some elements replaced by zeros, or all of them moved."""
    if not d.shape(v):
        return v
    axis = d.number(1, len(d.shape(v)))
    side = d.values[v].shape[axis]
    pads = [0, 0] * (len(d.shape(v)) - axis)
    here = ":, " * axis
    cut = d.number(1, max(1, side - 1))
    return d.write(
        d.one_of(
            f"F.pad({v}[{here}:{side - cut}], {[*pads, 0, cut]})",
            f"F.pad({v}[{here}{cut}:], {[*pads, cut, 0]})",
            f"F.pad({v}[{here}{cut}:], {[*pads, 0, cut]})",
            f"torch.roll({v}, 1, {axis})",
            f"{v}.flip([{axis}])",
        )
    )


def activated(d: Draft, v: str) -> str:
    """An activation that keeps the shape."""
    return d.write(f"{d.one_of('torch.relu', 'F.gelu', 'torch.abs', 'F.silu', 'torch.tanh', 'F.leaky_relu')}({v})")


def hidden(d: Draft, v: str) -> str:
    """A ReLU that inputs of ordinary size do not activate."""
    return d.write(f"torch.relu({v} - 30.0)")


STEPS: tuple[Callable[[Draft, str], str], ...] = (mixed, mixed, moved, activated, activated, hidden)


@draws("add", "sub", "relu", "linear", "conv2d", weight=10)
def residual(d: Draft) -> None:
    """A residual block in its usual forms; the branch may contain another block."""
    v = d.value(lambda shape: len(shape) > 0)
    branch = v
    for _ in range(d.number(1, 4)):
        branch = d.one_of(*STEPS)(d, branch)
    if d.shape(branch) != d.shape(v):
        raise UnfitError
    alpha, beta = d.one_of(1.0, 0.5, -2.0), d.one_of(1.0, 0.1, -3.0)
    skip = mixed(d, v) if d.number(0, 3) == 0 else v
    d.write(
        d.one_of(
            f"{skip} + {branch}",
            f"{branch} + {skip}",
            f"{skip} - {branch}",
            f"{alpha} * {skip} + {beta} * {branch}",
            f"torch.add({skip}, {branch}, alpha={beta})",
            f"torch.relu({skip} + {branch})",
        )
    )


@draws("add", "cat", weight=4)
def branches(d: Draft) -> None:
    """Two or three branches from one value: their sum, concatenation or maximum."""
    v = d.value(lambda shape: len(shape) > 0)
    parts = []
    for _ in range(d.number(2, 3)):
        part = d.one_of(*STEPS)(d, v)
        parts.append(d.one_of(*STEPS)(d, part) if d.chance() else part)
    listed = ", ".join(parts)
    d.write(
        d.one_of(
            " + ".join(parts), f"torch.cat([{listed}], 1)", f"torch.maximum({parts[0]}, {parts[1]})",
            f"torch.stack([{listed}], 1).sum(1)", f"{parts[0]} - {parts[0]} + {parts[1]}",
        )
    )  # fmt: skip


@draws("maximum", "minimum", "cat", "sort", "max.dim", "min.dim", weight=3)
def maxmin(d: Draft) -> None:
    """MaxMin in its usual forms."""
    v = d.value(lambda shape: len(shape) > 0 and shape[0] > 1 and shape[0] % 2 == 0)
    half = d.shape(v)[0] // 2
    a, b = f"{v}[:, :{half}]", f"{v}[:, {half}:]"
    pairs = f"{v}.unflatten(1, ({half}, 2))"
    d.write(
        d.one_of(
            f"torch.cat([torch.maximum({a}, {b}), torch.minimum({a}, {b})], 1)",
            f"torch.cat([{pairs}.max(2).values, {pairs}.min(2).values], 1)",
            f"torch.stack([{pairs}.amax(2), {pairs}.amin(2)], 2).flatten(1, 2)",
            f"{pairs}.sort(2).values.flatten(1, 2)",
        )
    )


@draws("linear", weight=5)
def chain(d: Draft) -> None:
    """Consecutive linear maps, which the certifier may multiply out."""
    v = d.value(lambda shape: len(shape) > 0)
    for _ in range(d.number(2, 4)):
        v = d.one_of(mixed, mixed, moved)(d, v)
