"""The largest radius at which a relaxation still proves every margin: a secant search on the logarithm of eps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time


@dataclass(frozen=True)
class Outcome:
    """What a relaxation made at `eps` gave: its worst margin, and the radius up to which all margins are positive."""

    eps: float
    margin: float
    radius: float


def largest_radius(
    attempt: Callable[[float], Outcome],
    *,
    margin: float,
    start: float,
    limit: float = math.inf,
    tolerance: float = 0.02,
    attempts: int = 16,
    deadline: float = math.inf,
) -> Outcome:
    """The attempt with the largest radius.

    What a relaxation loses of the margin grows about as a power of eps, so its logarithm is interpolated over that of
    eps. margin: at the image itself. start: the first eps. limit: no radius above it exists (an attack's distance).
    deadline: of `thread_time`.
    """
    best = Outcome(0.0, -math.inf, 0.0)
    tried: list[Outcome] = []
    eps = min(start, limit)
    for _ in range(attempts):
        found = attempt(eps)
        tried.append(found)
        best = max(best, found, key=lambda one: one.radius)
        above = min([limit, *(one.eps for one in tried if not one.margin > 0)])
        if best.radius * (1 + tolerance) >= above or thread_time() > deadline:
            break
        low, high = best.radius * (1 + tolerance / 2), above / (1 + tolerance / 2)
        eps = min(max(_crossing(tried, margin), low), high)
    return best


def _crossing(tried: list[Outcome], margin: float) -> float:
    """Where the loss is expected to reach the margin, by the two attempts that came closest to it."""
    points = sorted(tried, key=lambda one: abs(math.log(_loss(one, margin) / margin)))
    near = points[0]
    power = 2.0
    if len(points) > 1 and points[1].eps != near.eps:
        power = math.log(_loss(points[1], margin) / _loss(near, margin)) / math.log(points[1].eps / near.eps)
    aim = 0.995 * margin
    return near.eps * math.exp(min(max(math.log(aim / _loss(near, margin)) / max(power, 0.5), -2.5), 1.5))


def _loss(one: Outcome, margin: float) -> float:
    return max(margin - one.margin, 1e-9 * margin) if math.isfinite(one.margin) else 1e6 * margin
