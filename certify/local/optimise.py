"""Optimise the slopes of lower lines and the multipliers of splits by Adam; a search in float32."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.local.backward import Form, Rows, pulled_back
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines, Relaxation
from robustres.certify.local.sets import Region
from robustres.certify.maps.linear_map import as_rows

DECAYS = (0.9, 0.999)


@dataclass(frozen=True, eq=False)
class Optimised:
    """value: (R,) the largest minimum found for each row; slopes, multipliers: those that gave it."""

    value: Tensor
    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]


def optimised(
    program: Program,
    rows: Rows,
    lines: Mapping[int, Relaxation],
    region: Region,
    *,
    signs: Mapping[int, Tensor],
    points: Mapping[int, Tensor],
    steps: int,
    rate: float,
    enough: Tensor | None = None,
) -> Optimised:
    """Maximise the minimum of every row on one region, starting from the rows' own slopes and multipliers.

    signs, points: of the splits, as `parts.signs_of_parts` gives them. enough: (R,) values at which to stop. rate: step
    size of slopes; multipliers move at twice that rate, relative to 1.
    """
    ancestors = program.ancestors(rows.place)
    before = {place: line for place, line in lines.items() if place in ancestors and isinstance(line, Lines)}
    slopes, multipliers = {}, {}
    for place, line in sorted(before.items()):
        free = line.flattest < line.steepest
        given = rows.slopes.get(place)
        if given is not None or bool(free.any()):
            first = _of(line.lower_slope, rows.owner) if given is None else given
            slopes[place] = first.expand(len(rows.weights), *first.shape[1:]).clone()
    for place, sign in signs.items():
        given = rows.multipliers.get(place)
        multipliers[place] = torch.zeros_like(sign) if given is None else given.clone()
    best = _Best()
    moves = {
        **{(0, p): _Adam(v, rate) for p, v in slopes.items()},
        **{(1, p): _Adam(v, 2 * rate) for p, v in multipliers.items()},
    }
    for step in range(steps + 1):
        last = step == steps or not moves
        with torch.set_grad_enabled(not last):
            variables = {**{(0, p): v for p, v in slopes.items()}, **{(1, p): v for p, v in multipliers.items()}}
            for variable in variables.values():
                variable.requires_grad_(not last)
            moved = replace(rows, slopes=slopes, multipliers=multipliers)
            form = pulled_back(program, moved, lines)
            value = minimum(form, region, multipliers, points, close=last)
            total = value.sum()
        best.see(value, slopes, multipliers)
        if last or (enough is not None and bool((best.value > enough).all())):
            break
        gradients = torch.autograd.grad(total, list(variables.values()), allow_unused=True)
        with torch.no_grad():
            for (kind, place), gradient in zip(variables, gradients, strict=True):
                variable = variables[kind, place].detach()
                if gradient is not None:
                    variable = variable + moves[kind, place](gradient)
                if kind == 0:
                    variable = torch.minimum(
                        torch.maximum(variable, _of(before[place].flattest, rows.owner)),
                        _of(before[place].steepest, rows.owner),
                    )
                    slopes[place] = variable
                else:
                    sign = signs[place]
                    multipliers[place] = (
                        torch.where(sign < 0, variable.clamp_max(0), variable.clamp_min(0)) * sign.abs()
                    )
    return Optimised(best.value, best.slopes, best.multipliers)


def minimum(
    form: Form, region: Region, multipliers: Mapping[int, Tensor], points: Mapping[int, Tensor], *, close: bool
) -> Tensor:
    """(R,) the minimum on the region, including the constants of the splits."""
    value = replace(form, owner=torch.zeros_like(form.owner)).minimum(region, close=close)
    for place, values in multipliers.items():
        if place in points and bool(points[place].any()):
            value = value - as_rows(values * points[place]).sum(dim=1)
    return value


class _Best:
    def __init__(self) -> None:
        self.value = torch.empty(0)
        self.slopes: dict[int, Tensor] = {}
        self.multipliers: dict[int, Tensor] = {}

    def see(self, value: Tensor, slopes: Mapping[int, Tensor], multipliers: Mapping[int, Tensor]) -> None:
        """Keep the better of the known and the new values of each row."""
        value = value.detach()
        if not len(self.value):
            self.value = value
            self.slopes = {place: values.detach() for place, values in slopes.items()}
            self.multipliers = {place: values.detach() for place, values in multipliers.items()}
            return
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        for kept, new in ((self.slopes, slopes), (self.multipliers, multipliers)):
            for place, values in new.items():
                mask = better.reshape(-1, *[1] * (values.ndim - 1))
                kept[place] = torch.where(mask, values.detach(), kept[place])


class _Adam:
    """Steps of gradient ascent by Adam (Kingma and Ba 2015)."""

    def __init__(self, like: Tensor, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)

    def __call__(self, gradient: Tensor) -> Tensor:
        self.count += 1
        one, two = DECAYS
        self.first = one * self.first + (1 - one) * gradient
        self.second = two * self.second + (1 - two) * gradient.square()
        scale = (1 - two**self.count) ** 0.5 / (1 - one**self.count)
        step: Tensor = self.rate * 0.97**self.count * scale * self.first / (self.second.sqrt() + 1e-12)
        return step


def _of(values: Tensor, owner: Tensor) -> Tensor:
    return values if len(values) == 1 else values[owner]
