"""Bounds of how much every step can change around one image: one ellipsoid per layer, for all its neurons.

Let x be the change of the image. The value of every step changes by a linear function of x and of v, which has one
entry for each activation whose slope is unknown: if its argument changes by d, its answer changes by a d + D v with v
(d - v) >= 0, where [a, a + D] contains the slopes of all secants from the image. For any multipliers t > 0, summed over
the neurons,

    q(x, v) = |x|^2 + sum t v (v - d)  <=  |x|^2  <=  radius^2.

If q is positive definite, this is an ellipsoid that contains every change, and a row c changes by at most radius times
sqrt(c q^-1 c). This takes one factorisation per layer and one triangular solve for each of its neurons. The bound holds
for any multipliers t; `shared` chooses them. In `quadratic`, every row has its own multipliers and its own elimination.

An activation on one side of its tangent at the image (`tangents`) is written with the slope a of the tangent. D may
then be negative, and D v is its distance from the tangent, whose sign is known. Rows give up all of their coefficients
of v that this makes harmless (`sided`): others for their decrease than for their increase.

Every rounding is charged. After x is eliminated, S = I - (H + H^T) / 2 - r X X^T r / 4 remains of q in the coordinates
r v with r = sqrt(t); X and r^-1 H r contain the coefficients of d with respect to x and v.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.blocks.increments import SectorLayer
from robustres.certify.local.program import BLOCK, Program, lower_products
from robustres.certify.local.secants import slopes_from, tangent_at
from robustres.certify.local.sets import Region, half_widths
from robustres.certify.local.steps import (
    Activation,
    Affine,
    Concatenation,
    Input,
    Known,
    Product,
    Step,
    Total,
    sources_of,
)
from robustres.certify.maps.linear_map import as_rows
from robustres.certify.proof.cholesky_proof import definiteness_slack
from robustres.numerics import gamma

MOST = 2**26  # largest number of entries of one step's changes
STORED = 2**23  # largest number of entries of the first map's, which are computed once for a network
SPARE = 1e-6  # S minus the product of its factors is at least this
SHRINKING = (1.0, 0.97, 0.85, 0.6, 0.3)  # scales tried in turn if the multipliers are too large
RANGE = 1e3  # largest ratio of a multiplier to the median, and of the median to a multiplier
TINY = 1e-200  # above anything lost to underflow
UP = 1 + 2.0**-40

Multipliers = Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Targets:
    """Rows c: coefficients of x (n, R) and of v (N, R), a bound of each row's error in norm (R,), and X c_x (N, R)."""

    image: Tensor
    hidden: Tensor
    error: Tensor
    inner: Tensor


@dataclass(frozen=True, eq=False)
class Factor:
    """root: r (N,). lower: L with S - L L^T >= SPARE for the exact S. length, size, off: at or above |L|, |r X| and the
    error of r X and H."""

    root: Tensor
    lower: Tensor
    length: float
    size: float
    off: float


Choice = Callable[["Changes", int, Targets], Multipliers | None]


class Changes:
    """The changes of the steps, computed one by one while bounds are found.

    program: in float64, or in float32 for a search, whose bounds prove nothing. region: of one sample, in l2 or linf.
    centre: proved lower and upper bounds at the image, in float64. choice: returns the multipliers for some targets at
    a place, or None to leave that place as it is.
    """

    def __init__(self, program: Program, region: Region, centre: tuple[list[Tensor], list[Tensor]], choice: Choice):
        self.program, self.choice, self.centre = program, choice, centre
        shape, like = program.steps[0].shape, torch.zeros((), dtype=program.dtype, device=program.device)
        self.inputs = math.prod(shape)  # coordinates of x
        self.ended = region.norm == "l1" or self.inputs**2 > MOST
        # In linf, x is scaled by each pixel's half-width, so the box lies in a ball of radius sqrt(n).
        units = half_widths(region).to(like) if region.norm == "linf" else like.new_ones(self.inputs)
        self.radius = float(region.eps[0]) if region.norm == "l2" else math.sqrt(self.inputs) * UP
        self.values = {} if self.ended else {0: torch.diag(units).reshape(-1, *shape)}
        # By step (*shape), a bound of the norm of the error of each coordinate's column.
        self.errors = {0: like.new_zeros(shape)}
        # Whether the changes of step 1 are those of every image.
        self.first = (
            region.norm == "l2"
            and isinstance(program.steps[1], Affine)
            and self.inputs * math.prod(program.steps[1].shape) <= STORED
        )
        self.free: dict[int, Tensor] = {}  # by activation, the coordinates with an entry of v
        self.sign = like.new_zeros(0)  # of v times its coefficient, in truth: 1 or -1, 0 if it is not known
        self.reach = like.new_zeros(0)  # largest change of each argument, relative to the radius
        self.image = like.new_zeros(0, self.inputs)  # the rows X
        self.hidden = like.new_zeros(0, 0)  # the coefficients of v in these rows
        self.gram = like.new_zeros(0, 0)  # the lower half of X X^T
        self.row_error = self.hidden_size = 0.0
        self.factored: tuple[Tensor, Factor] | None = None  # the latest multipliers and their factor
        self.latest: tuple[int, Tensor, Tensor] | None = None  # place, coordinates and X c_x of the previous targets

    def follow(self, place: int, bounds: tuple[list[Tensor], list[Tensor]]) -> None:
        """Add the next step. bounds: lower and upper bounds of all steps before it."""
        step = self.program.steps[place]
        self.ended = self.ended or (self.inputs + len(self.reach)) * math.prod(step.shape) > MOST
        if self.ended or isinstance(step, Input):
            self.values = {} if self.ended else self.values
            return
        if isinstance(step, Activation):
            self._activation(place, step, bounds)
        elif isinstance(step, Product):
            self._product(place, step, bounds)
        else:
            self.values[place], self.errors[place] = self._linear(place, step)
        if self.ended:
            return
        read = {source for later in self.program.steps[place + 1 :] for source in sources_of(later)}
        for old in [old for old in self.values if old not in read and old != place]:
            del self.values[old], self.errors[old]
        self.ended = not bool(torch.isfinite(self.errors[place]).all())

    def _linear(self, place: int, step: Step) -> tuple[Tensor, Tensor]:
        """The changes of an affine step, a sum or a concatenation, and bounds of their errors."""
        match step:
            case Affine():
                before, error = self.values[step.source], self.errors[step.source]
                error = error + gamma(step.charged + 8) * _lengths(before)
                after = self.program.first_columns if place == 1 and self.first else step.map(before)
                return after, step.absolute(error[None])[0] * (1 + 1e-6) + TINY
            case Total():
                parts = [self.values[source] for source in step.sources]
                error = sum((self.errors[source] for source in step.sources[1:]), self.errors[step.sources[0]])
                rounding = gamma(len(parts) + 4) * sum(map(_lengths, parts[1:]), _lengths(parts[0]))
                return sum(parts[1:], parts[0]), (error + rounding) * UP
            case Concatenation():
                values, errors = ([of[source] for source in step.sources] for of in (self.values, self.errors))
                return torch.cat(values, dim=step.axis + 1), torch.cat(errors, dim=step.axis)
            case Known():
                return self.values[step.source], self.errors[step.source]
        raise AssertionError(step)

    def _activation(self, place: int, step: Activation, bounds: tuple[list[Tensor], list[Tensor]]) -> None:
        low, high = (side[step.source][0] for side in self.centre)
        slopes = slopes_from(step.function, low, high, *(side[step.source][0] for side in bounds))
        self._sector(place, step.source, slopes, bounds, tangent_at(step.function, low, high))

    def _product(self, place: int, step: Product, bounds: tuple[list[Tensor], list[Tensor]]) -> None:
        """a b - a0 b0 = a0 (b - b0) + b (a - a0): linear in the change of b, and of the slope b in that of a."""
        first, second = step.sources
        low, high = (side[first][0].flatten() for side in self.centre)
        middle, half = (low / 2 + high / 2).to(self.reach), ((high / 2 - low / 2) * UP).to(self.reach)
        values, error = as_rows(self.values[second]), self.errors[second].flatten()
        lengths = _lengths(values)
        off = (middle.abs() + half) * error + (half + gamma(4) * middle.abs()) * lengths
        linear = values * middle
        self._sector(place, first, (bounds[0][second][0], bounds[1][second][0]), bounds)
        if self.ended:
            return
        whole = as_rows(self.values[place])
        whole[: len(linear)] += linear
        off = (self.errors[place].flatten() + off + gamma(2) * _lengths(whole)) * UP + TINY
        self.errors[place] = off.reshape(step.shape)

    def _sector(
        self,
        place: int,
        source: int,
        slopes: tuple[Tensor, Tensor],
        bounds: tuple[list[Tensor], list[Tensor]],
        tangent: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Arguments whose slope is unknown become rows; their entries of v become coordinates of all later steps."""
        step, (flat, steep) = self.program.steps[place], slopes
        low, high = (side[source][0] for side in self.centre)
        nothing = torch.zeros(flat.numel(), dtype=torch.long)
        layer = SectorLayer(flat.flatten(), steep.flatten(), nothing, 1, step.shape)
        slope, width, sign = layer.lower, layer.width, torch.zeros_like(layer.lower)
        if tangent is not None:
            touching, side = (one.flatten() for one in tangent)
            turned = touching == layer.upper
            slope, width = torch.where(turned, layer.upper, slope), torch.where(turned, -width, width)
            sign = torch.where(touching == slope, side * width.sign(), sign)
        slope, width = slope.to(self.reach), width.to(self.reach)
        if not bool(torch.isfinite(width).all()):
            self.ended = True
            return
        self._compress(place, source, ((slope != 0) | (width != 0)).nonzero().flatten())
        before, error = as_rows(self.values[source]), self.errors[source].flatten()
        free = (width != 0).nonzero().flatten()
        if (self.inputs + len(self.reach) + len(free)) ** 2 > MOST:
            self.ended = True
            return
        self.free[place], self.sign = free, torch.cat([self.sign, sign.to(self.reach)[free]])
        self._rows(before[:, free], self._products(source, free))
        self.row_error = math.hypot(self.row_error, _norm(error[free])) * UP
        reach = torch.maximum(bounds[1][source][0] - low, high - bounds[0][source][0]).flatten()[free]
        self.reach = torch.cat([self.reach, reach.to(before) / self.radius])
        error = slope.abs() * (error + gamma(4) * _lengths(before)) * UP + TINY
        after = before.new_empty(len(before) + len(free), len(slope))
        torch.mul(before, slope, out=after[: len(before)])
        after[len(before) :] = 0.0
        after[torch.arange(len(before), len(after)), free] = width[free]
        read = {source for later in self.program.steps[place + 1 :] for source in sources_of(later)}
        for old in read & self.values.keys():
            values = self.values[old]
            self.values[old] = torch.cat([values, values.new_zeros(len(free), *values.shape[1:])])
        self.values[place] = after.reshape(-1, *step.shape)
        self.errors[place] = error.reshape(step.shape)

    def _compress(self, place: int, source: int, active: Tensor) -> None:
        """If x acts only through a few arguments d = V^T x, replace x by fewer coordinates y: d = L y with |y| <= |x|.

        L L^T >= V^T V suffices, which the shift ensures despite errors of V and roundings of the factor.
        """
        read = any(source in sources_of(later) for later in self.program.steps[place + 1 :])
        if len(self.reach) or read or list(self.values) != [source] or not 0 < len(active) < self.inputs:
            return
        values = self.values[source]
        if source == 1 and self.first and values[0].numel() < self.inputs:
            gram = self.program.first_products[active][:, active]
        else:
            gram = lower_products(as_rows(values)[:, active].to(torch.float64))
        size = math.sqrt(float(gram.trace()) * (1 + gamma(4 * (self.inputs + len(active))))) * UP
        off = _norm(self.errors[source].flatten()[active])
        charge = gamma(4 * (self.inputs + 16)) * size * size + (2 * size + off) * off
        gram.diagonal().add_(2 * (charge + definiteness_slack(len(active)) * size * size) + TINY)
        lower, info = torch.linalg.cholesky_ex(gram)
        if bool(info) or not bool(torch.isfinite(lower.diagonal()).all()):
            return
        compressed = values.new_zeros(len(active), values[0].numel())
        compressed[:, active] = lower.T.to(values)
        self.values[source] = compressed.reshape(-1, *values.shape[1:])
        self.errors[source] = torch.zeros_like(self.errors[source])
        self.inputs, self.image, self.latest = len(active), self.image.new_zeros(0, len(active)), None

    def _products(self, place: int, free: Tensor) -> Tensor:
        """X c_x for coordinates of a step, taken from the latest targets if these contain them."""
        if self.latest is not None:
            at, coordinates, inner = self.latest
            if at == place and len(inner) == len(self.image) and bool(torch.isin(free, coordinates).all()):
                return inner[:, torch.searchsorted(coordinates, free)]
        return self.image @ as_rows(self.values[place])[: self.inputs, free]

    def _rows(self, columns: Tensor, side: Tensor) -> None:
        image, old, new = columns[: self.inputs].T.contiguous(), len(self.reach), columns.shape[1]
        gram, hidden = side.new_zeros(old + new, old + new), side.new_zeros(old + new, old + new)
        gram[:old, :old], gram[old:, :old] = self.gram, side.T
        gram[old:, old:] = lower_products(columns[: self.inputs])
        hidden[:old, :old], hidden[old:, :old] = self.hidden, columns[self.inputs :].T
        self.hidden_size = math.hypot(self.hidden_size, _norm(columns[self.inputs :])) * UP
        self.gram, self.hidden, self.image = gram, hidden, torch.cat([self.image, image])

    def targets(self, place: int, *, rows: Tensor | None = None, coordinates: Tensor | None = None) -> Targets:
        """Rows (R, n) of the values of a step, or single coordinates (R,) of it in ascending order."""
        values, error = as_rows(self.values[place]), self.errors[place].flatten()
        if coordinates is not None:
            picked, off = values[:, coordinates], error[coordinates]
        else:
            assert rows is not None
            picked = values @ rows.T
            off = rows.abs() @ (error + gamma(values.shape[1] + 4) * _lengths(values)) * (1 + 1e-6)
        image = picked[: self.inputs]
        found = Targets(image, picked[self.inputs :], off + TINY, self.image @ image)
        if coordinates is not None:
            self.latest = place, coordinates, found.inner
        return found

    def narrowed(self, place: int, coordinates: Tensor) -> tuple[Tensor, Tensor] | None:
        """(R,) lower and upper bounds of some coordinates of a step, with the multipliers of `choice`."""
        if self.ended or not len(coordinates):
            return None
        targets = self.targets(place, coordinates=coordinates)
        multipliers = self.choice(self, place, targets)
        if multipliers is None:
            return None
        fall, rise = (self.bound(self.sided(targets, side), multipliers) for side in (1.0, -1.0))
        low, high = (side[place][0].flatten()[coordinates] for side in self.centre)
        inf = torch.full_like(low, math.inf)
        return torch.nextafter(low - fall, -inf), torch.nextafter(high + rise, inf)

    def sided(self, targets: Targets, side: float) -> Targets:
        """Rows that never exceed the given ones (side 1), or never lie below them (side -1)."""
        spare = targets.hidden * (self.sign * side)[:, None] > 0
        return replace(targets, hidden=torch.where(spare, 0.0, targets.hidden))

    def decrease(self, place: int, rows: Tensor) -> Tensor | None:
        """(R,) at or above the decrease of rows (R, n) of a step, with the multipliers of `choice`."""
        if self.ended:
            return None
        targets = self.sided(self.targets(place, rows=rows), 1.0)
        multipliers = self.choice(self, place, targets)
        return None if multipliers is None else self.bound(targets, multipliers)

    def bound(self, targets: Targets, multipliers: Multipliers) -> Tensor:
        """(R,) at or above the absolute change of every target, float64; infinite if the multipliers prove nothing."""
        straight: Tensor = targets.image.norm(dim=0) * UP + targets.error
        if not len(self.reach):
            return straight * (self.radius * UP)
        t = self.stacked(multipliers)
        found = next((one for share in SHRINKING if (one := self.factor(t * share)) is not None), None)
        nothing = torch.full_like(targets.error, math.inf)
        if found is None:
            return nothing
        right = self.right(targets, found.root)
        solved = torch.linalg.solve_triangular(found.lower, right, upper=False).norm(dim=0)
        residual = gamma(4 * (len(found.root) + 2)) * found.length * solved * UP
        residual = residual + self._right_error(targets, found, right, straight)
        solved = solved * UP + residual / math.sqrt(SPARE)
        change: Tensor = (straight.square() + solved.square()).sqrt() * (self.radius * UP)
        return torch.where(torch.isfinite(change), change, nothing)

    def right(self, targets: Targets, root: Tensor) -> Tensor:
        """c_v / r + r X c_x / 2 (N, R)."""
        right: Tensor = (targets.inner * (root / 2)[:, None]).addcdiv_(targets.hidden, root[:, None])
        return right

    def _right_error(self, targets: Targets, found: Factor, right: Tensor, straight: Tensor) -> Tensor:
        """(R,) bounds of the errors of the columns of `right`. straight: at or above the norms of the c_x."""
        steep = float((1 / found.root).max()) * UP
        sizes: Tensor = steep * targets.hidden.norm(dim=0) + right.norm(dim=0)
        off = (steep + found.size) * targets.error + found.off * straight
        return (off + gamma(4 * (self.inputs + 16)) * found.size * straight + gamma(8) * sizes) * UP + TINY

    def factor(self, t: Tensor) -> Factor | None:
        """For multipliers t (N,); None if q is not sufficiently positive definite."""
        if self.factored is not None and torch.equal(self.factored[0], t):
            return self.factored[1]
        root = t.sqrt()
        matrix = self.gram.new_zeros(self.gram.shape)
        for at in range(0, len(t), BLOCK):  # the lower half of S, which contains H but not H^T
            end = min(at + BLOCK, len(t))
            part = matrix[at:end, :end]
            torch.mul(self.gram[at:end, :end], root[:end] / -4, out=part)
            part.addcmul_(self.hidden[at:end, :end], (0.5 / root[:end]).expand_as(part), value=-1)
            part.mul_(root[at:end, None])
        spread = float(root.max()) * max(1.0, float((1 / root).max())) * UP
        across = self.hidden_size * spread  # at or above |H|
        matrix.diagonal().add_(1.0)
        count = len(t)
        square = float((t * self.gram.diagonal()).sum()) * (1 + gamma(4 * (self.inputs + count)))
        size = math.sqrt(square) * UP
        off = self.row_error * spread
        error = gamma(4 * (self.inputs + 16)) * square + gamma(8) * (math.sqrt(count) + across + square)
        error = (error + off + size * off + off * off) * UP
        shift = (SPARE + error + definiteness_slack(count) * float(matrix.diagonal().abs().sum())) * UP
        matrix.diagonal().sub_(shift)
        lower, info = torch.linalg.cholesky_ex(matrix)
        if bool(info) or not bool(torch.isfinite(lower.diagonal()).all()):
            return None
        length = math.sqrt(float(matrix.diagonal().sum()) * (1 + gamma(4 * (count + 4)))) * UP  # Higham 2002, 10.3
        self.factored = t, Factor(root, lower, length, size, off)
        return self.factored[1]

    def stacked(self, multipliers: Multipliers) -> Tensor:
        """(N,) multipliers of the free coordinates so far; missing or non-positive ones are replaced by a default."""
        filled = self.reach.clamp_min(1e-15).reciprocal().square()
        parts = []
        for (place, free), own in zip(
            self.free.items(), torch.split(filled, [len(free) for free in self.free.values()]), strict=True
        ):
            given = multipliers.get(place)
            mine = own if given is None else given.to(own).flatten()[free]
            parts.append(torch.where(torch.isfinite(mine) & (mine > 0), mine, own))
        whole = torch.cat(parts)
        usual = whole.median()
        return whole.clamp(usual / RANGE, usual * RANGE)


def _lengths(values: Tensor) -> Tensor:
    """(*shape) at or above the norm of each coordinate's column of (n, *shape)."""
    lengths: Tensor = values.square().sum(0).sqrt() * (1 + 2.0**-40)
    return lengths


def _norm(values: Tensor) -> float:
    """At or above the Frobenius norm."""
    return float(values.norm()) * (1 + gamma(values.numel() + 4))
