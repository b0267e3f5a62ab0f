"""The strongest lower estimate of a Lipschitz constant: ascent over inputs and directions, ending in a witness."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustres.arguments import require_number
from robustres.certify.lower.jacobian import Function, norms, scaled, steepest_directions, unit
from robustres.certify.lower.witness import Measured, Witness, as_witness, safe_ratios
from robustres.errors import InputError

# Distances of the final pairs, relative to the norm of the input: the ratio of a pair within one linear piece does not
# depend on the distance, and rounding matters less at larger distances.
_REACH = (1.0, 0.1, 1e-2, 1e-3, 1e-4)

# Distance of the pairs in the first ascent (relative to the input), across many linear pieces.
_FIRST_REACH = 0.3
# A round starts from copies of the best pairs, moved and spread apart by factors drawn from these ranges.
_PARENTS, _CHILDREN = 2, 4
_MOVED, _SPREAD = (0.03, 0.3), 10.0
# The search ends after this number of rounds in which the best ratio grew by less than this share.
_PATIENCE, _GROWTH = 10, 1e-3


@dataclass(frozen=True)
class Search:
    """Effort of the search for a pair of inputs with a large ratio.

    rounds: number of ascents from the best pairs so far; the first one is from all starts.
    lanczos_steps: of the iteration on J^T J at each start. ascent_steps: of the first ascent on the ratio of a pair;
    later ones take half as many. batch_size: starts per batch. seconds: time limit of the ascents.
    seed: of all random numbers.
    """

    rounds: int = 60
    lanczos_steps: int = 40
    ascent_steps: int = 200
    batch_size: int = 16
    seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "lanczos_steps", "batch_size"):
            require_number(name, getattr(self, name), least=1, whole=True)
        for name in ("ascent_steps", "seed"):
            require_number(name, getattr(self, name), whole=True)
        if not self.seconds > 0:
            raise InputError(f"seconds must be positive, got {self.seconds!r}")


def strongest_witness(function: Measured, starts: Tensor, *, search: Search, enough: float = math.inf) -> Witness:
    """The pair with the largest safely rounded ratio |f(x') - f(x)| / |x' - x| found from `starts` (B, ...).

    At each start: the steepest direction of the Jacobian, followed by ascent on the ratio of a pair along it, with both
    ends free. Then rounds from perturbed copies of the best pairs, until the ratio stops growing. Inputs may leave
    [0, 1], since a Lipschitz constant concerns all inputs. The ratio is a lower estimate: it can refute a claim but
    never certify one.

    enough: a ratio that cannot be exceeded, such as a bound; the search stops there.
    """
    deadline = time.monotonic() + search.seconds
    generator = torch.Generator().manual_seed(search.seed)
    best: Pair | None = None
    for pair in _climb(function, starts.to(torch.float64), search, generator, deadline):
        if best is None or pair.ratio > best.ratio:
            best = pair
        if best.ratio >= enough:
            break
    assert best is not None
    return as_witness(function, best.x, best.other)


class Pair(NamedTuple):
    """Two inputs (*input shape) and the safe ratio of their outputs."""

    ratio: float
    x: Tensor
    other: Tensor


def _climb(
    function: Measured, starts: Tensor, search: Search, generator: torch.Generator, deadline: float
) -> Iterator[Pair]:
    """Pairs with mostly increasing ratios: from every start, then repeatedly from the best ones."""
    peaks = []
    for batch in torch.split(starts, search.batch_size):
        steepest = steepest_directions(
            function, batch, _normal_like(batch, generator), steps=search.lanczos_steps, deadline=deadline
        )
        yield _strongest(function, _pairs(batch, steepest.direction))
        apart = scaled(_FIRST_REACH * _lengths(batch), steepest.direction)
        peaks.append(ascend(function, batch, apart, steps=search.ascent_steps, deadline=deadline))
    middle, spread = (torch.cat(parts) for parts in zip(*peaks, strict=True))
    history: list[float] = []
    while True:
        order = safe_ratios(function, middle - spread / 2, middle + spread / 2).argsort(descending=True)[:_PARENTS]
        middle, spread = middle[order], spread[order]
        steps = max(1, search.lanczos_steps // 4)
        there = steepest_directions(function, middle, spread, steps=steps, deadline=deadline)
        peak = _strongest(function, [(middle - spread / 2, middle + spread / 2), *_pairs(middle, there.direction)])
        yield peak
        history.append(max([peak.ratio, *history[-1:]]))
        stale = len(history) > _PATIENCE and history[-1] < (1 + _GROWTH) * history[-1 - _PATIENCE]
        if len(history) == search.rounds or stale or time.monotonic() > deadline:
            return
        moved = ascend(
            function, *children(middle, spread, generator), steps=search.ascent_steps // 2, deadline=deadline
        )
        middle, spread = torch.cat([middle, moved[0]]), torch.cat([spread, moved[1]])


def children(middle: Tensor, spread: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Copies of the pairs, the first of each at the position of its parent and the others moved, all spread apart."""
    parent = torch.arange(_CHILDREN, device=middle.device) % len(middle)
    moved, apart = torch.rand(2, _CHILDREN, generator=generator, dtype=middle.dtype).to(middle.device)
    reach = _MOVED[0] * (_MOVED[1] / _MOVED[0]) ** moved
    reach[: len(middle)] = 0
    middle, spread = middle[parent], spread[parent]
    away = unit(_normal_like(middle, generator))
    return middle + scaled(reach * _lengths(middle), away), scaled(_SPREAD**apart, spread)


def _pairs(x: Tensor, direction: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs along the directions at several distances."""
    return [(x, x + scaled(reach * _lengths(x), direction)) for reach in _REACH]


def _strongest(function: Measured, pairs: Sequence[tuple[Tensor, Tensor]]) -> Pair:
    """The pair with the largest safe ratio in batches of pairs."""
    ratios = torch.stack([safe_ratios(function, x, other) for x, other in pairs])
    row, sample = divmod(int(ratios.argmax()), ratios.shape[1])
    x, other = pairs[row]
    return Pair(float(ratios[row, sample]), x[sample], other[sample])


def ascend(function: Function, x: Tensor, direction: Tensor, *, steps: int, deadline: float) -> tuple[Tensor, Tensor]:
    """Adam on log |f(x + d/2) - f(x - d/2)| - log |d| over x and d (B, ...) jointly; returns the best x and d of each
    sample.

    Unlike the Jacobian of a piecewise linear network, the ratio of a pair at a distance reflects how the Jacobian
    changes with x. Steps are relative to the length of d and decrease; d may grow and shrink.
    """
    length = norms(direction)
    shift = torch.zeros_like(x).requires_grad_()
    spread = scaled(1 / length, direction).requires_grad_()
    rate = 0.3 / x[0].numel() ** 0.5
    optimiser = torch.optim.Adam([shift, spread], lr=rate)
    best_value = torch.full_like(length, -torch.inf)
    best_x, best_direction = x, direction
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        with torch.enable_grad():
            there, apart = x + scaled(length, shift), scaled(length, spread)
            value = _log_norms(function(there + apart / 2) - function(there - apart / 2)) - _log_norms(apart)
            gradients = torch.autograd.grad(value.sum(), (shift, spread), materialize_grads=True)
        better = value.detach() > best_value
        best_value = torch.where(better, value.detach(), best_value)
        best_x = _where(better, there.detach(), best_x)
        best_direction = _where(better, apart.detach(), best_direction)
        shift.grad, spread.grad = (-gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients)
        optimiser.param_groups[0]["lr"] = rate * 10 ** -(step / steps)
        optimiser.step()
    return best_x, best_direction


def _log_norms(x: Tensor) -> Tensor:
    """(B,): the logarithm of each norm, with a gradient that cannot overflow."""
    scale = norms(x.detach()).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.add(torch.linalg.vector_norm(scaled(1 / scale, x).reshape(len(x), -1), dim=1).log(), scale.log())


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """For each sample, `new` where `chosen` (B,), else `old`."""
    return torch.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _lengths(x: Tensor) -> Tensor:
    """(B,): the norm of each input, or 1 if it is zero."""
    length = norms(x)
    return torch.where(length > 1e-200, length, torch.ones_like(length))


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
