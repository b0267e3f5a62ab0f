"""The largest radius at which a relaxation still proves every margin: a secant search on the logarithm of eps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time

# How what is lost grows with eps where only one attempt is known: slowly while bounds are tight, then fast.
RISE, STEEP = 3.5, 6.0
# How close to where a margin is expected to be lost the next attempt is made; how far one step may go.
AIM, FARTHEST = 0.99, math.log(2.5)
NEGLIGIBLE = 1e-9
# So many attempts are made until one proves something, whatever they take; so many in all. A radius within a factor of
# 1 + TOLERANCE of the largest possible one is not improved.
FIRST, ATTEMPTS = 3, 16
TOLERANCE = 0.02


@dataclass(frozen=True)
class Outcome:
    """What a relaxation made at `eps` gave: the largest share of a margin that it loses, infinite where it has no
    finite bounds, and the radius up to which all margins are positive. quadratic: whether more than linear bounds was
    tried, which loses less.
    """

    eps: float
    share: float
    radius: float
    quadratic: bool = False


def largest_radius(
    attempt: Callable[[float], Outcome],
    *,
    start: float,
    limit: float = math.inf,
    deadline: float = math.inf,
) -> list[Outcome]:
    """The attempts on the way to the largest radius.

    What a relaxation loses of the margin grows about as a power of eps, so its logarithm is interpolated over that of
    eps. start: the first eps. limit: no radius above it exists (an attack's distance). deadline: of `thread_time`; an
    attempt that would probably not end before it is not begun, unless a few have proved nothing yet.
    """
    best = Outcome(0.0, math.inf, 0.0)
    tried: list[Outcome] = []
    eps = min(start, limit)
    for _ in range(ATTEMPTS):
        begun = thread_time()
        found = attempt(eps)
        took = thread_time() - begun
        tried.append(found)
        best = max(best, found, key=lambda one: one.radius)
        above = min([limit, *(one.eps for one in tried if not one.share < 1)])
        crossing = _crossing(tried)
        late = thread_time() + took > deadline and (best.radius > 0 or len(tried) >= FIRST)
        if late or best.radius * (1 + TOLERANCE) >= min(above, crossing):
            break
        eps = min(max(AIM * crossing, best.radius * (1 + TOLERANCE / 2)), above / (1 + TOLERANCE / 2))
        if any(one.eps == above and not math.isfinite(one.share) for one in tried):  # how far beyond is not known
            eps = min(eps, math.sqrt(above * max(best.radius, above * math.exp(-2 * FARTHEST))))
    return tried


def _crossing(tried: list[Outcome]) -> float:
    """Where a margin is expected to be lost, by the attempts of the better method that came closest to it."""
    quadratic = [one for one in tried if one.quadratic]
    near, *others = sorted(quadratic or tried, key=lambda one: abs(_log(one)))
    power = RISE if _log(near) < 0 else STEEP
    if others and others[0].eps != near.eps:
        power = (_log(others[0]) - _log(near)) / math.log(others[0].eps / near.eps)
    step = -_log(near) / min(max(power, 1.0), 20.0)
    return near.eps * math.exp(min(max(step, -FARTHEST), FARTHEST))


def _log(one: Outcome) -> float:
    return math.log(min(max(one.share, NEGLIGIBLE), 1e9)) if not math.isnan(one.share) else math.log(1e9)
