"""The norm of a linear map as an interval: lower estimate, upper bound, method, guarantee."""

from time import perf_counter
from typing import Literal, get_args

import torch

from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.linear_map import Composition, LinearMap, Scaled, Sum
from robustres.certify.maps.rounding import largest_sum
from robustres.certify.norms.frequency_norm import frequency_bound
from robustres.certify.norms.lanczos import SMALLEST_SPHERE, lanczos_bound
from robustres.certify.norms.power_iteration import power_iteration
from robustres.certify.norms.structural_norm import dense_bound, is_small, structural_norm
from robustres.certify.norms.whole_gram import whole_gram_bound
from robustres.certify.proof.bound import Bound, Guarantee
from robustres.errors import InputError
from robustres.numerics import product_up, require_certifiable_arithmetic, rounded_up, scaled_down, scaled_up, sum_up

Method = Literal["auto", "dense", "frequency", "product", "lanczos"]
DEFAULT_SECONDS = 5.0
DEFAULT_DELTA = 1e-12
SMALL_SIDE = 12  # smaller images lose a few per cent on a torus; larger ones too little to be worth the time


def spectral_norm(
    map_: LinearMap,
    *,
    method: Method = "auto",
    delta: float | None = None,
    seconds: float | None = None,
    generator: torch.Generator | None = None,
    lower_steps: int = 20,
) -> Bound:
    """The operator norm of the map, between a lower estimate and an upper bound.

    method: "auto" takes the smallest bound within `seconds` (default 5, a guide for which candidates are tried, not a
        hard limit); "dense" decomposes the whole matrix; "frequency" takes the maximum over the frequencies of tori;
        "product" multiplies and adds the norms of the parts; "lanczos" needs only matrix-vector products and holds with
        probability 1 - delta.
    delta: None (the default) allows deterministic methods only; with a number in (0, 1), "auto" may also use a bound
        that fails with at most this probability over the random start. "lanczos" uses 1e-12 if it is None.
    generator: of the random starts. By default that of "lanczos" is seeded by the operating system, so its bound
        differs a little from call to call; that of the lower estimate is always the same.
    lower_steps: number of power iterations for the lower estimate.
    Raises InputError if the named method does not apply to this map.

    >>> from robustres.certify.maps.linear_map import Dense
    >>> round(spectral_norm(Dense(torch.diag(torch.tensor([3.0, 4.0])))).upper, 9)
    4.0
    """
    require_certifiable_arithmetic(map_.device)
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if delta is not None and not 0 < delta < 1:
        raise InputError(f"delta is a failure probability in (0, 1), got {delta:g}; leave it out for none")
    start = perf_counter()
    guarantee, name = Guarantee(), ""
    map_, exponent = map_.normalised()
    with torch.no_grad():
        if largest_sum(map_, of_rows=True) == 0:
            upper, name = 0.0, "exact"
        elif method == "lanczos":
            upper, guarantee = _probabilistic(map_, delta or DEFAULT_DELTA, generator)
            name = method
        elif method == "auto":
            upper, name = _tightest(map_, DEFAULT_SECONDS if seconds is None else seconds)
            if delta is not None and name not in ("exact", "dense"):
                probable, chance = _probabilistic(map_, delta, generator)
                if probable < upper:
                    upper, name, guarantee = probable, "lanczos", chance
        else:
            upper, name = _named(map_, method), method
        lower = min(upper, power_iteration(map_, steps=lower_steps, generator=generator).value)
    lower, upper = scaled_down(lower, exponent), scaled_up(upper, exponent)
    return Bound(lower, upper, name, guarantee, perf_counter() - start)


def _probabilistic(map_: LinearMap, delta: float, generator: torch.Generator | None) -> tuple[float, Guarantee]:
    """A bound that holds with probability 1 - delta; below three dimensions, the deterministic dense bound."""
    if min(map_.in_size, map_.out_size) < SMALLEST_SPHERE:
        return dense_bound(map_), Guarantee()
    return lanczos_bound(map_, delta=delta, generator=generator), Guarantee(delta)


def _named(map_: LinearMap, method: Method) -> float:
    """The deterministic bound of that name; infinite if the numbers overflow."""
    if method == "dense":
        return dense_bound(map_)
    if method == "product":
        return product_bound(map_)
    upper = frequency_bound(map_)
    if upper is None:
        raise InputError(
            f"method {method!r} needs a zero-padded or circular convolution of images, got {type(map_).__name__} "
            f"{map_.in_shape} -> {map_.out_shape}; use 'auto', 'dense' or 'lanczos'"
        )
    return upper


def _tightest(map_: LinearMap, seconds: float) -> tuple[float, str]:
    """The smallest of the deterministic bounds that are cheap enough, and its name."""
    exact = structural_norm(map_)
    if exact is not None:
        return exact, "exact"
    if is_small(map_):
        return dense_bound(map_), "dense"
    if isinstance(map_, Convolution) and min(map_.in_shape[1:]) <= SMALL_SIDE:
        whole = whole_gram_bound(map_, seconds=seconds)
        if whole is not None:
            return whole, "dense"
    upper = frequency_bound(map_, seconds=seconds)
    if upper is not None:
        return upper, "frequency"
    return product_bound(map_, seconds=seconds), "product"


def product_bound(map_: LinearMap, *, seconds: float = DEFAULT_SECONDS) -> float:
    """The bound from the norms of the parts: multiplied for compositions and for padding and kernel, added for sums."""
    match map_:
        case Composition():
            return product_up(_tightest(part, seconds)[0] for part in map_.parts)
        case Sum():
            return sum_up(_tightest(term, seconds)[0] for term in map_.terms)
        case Scaled():
            return rounded_up(product_up([abs(map_.factor), _tightest(map_.map, seconds)[0]]), map_.seen)
        case Convolution() if map_.circular:
            return product_bound(Composition((map_.pad(), map_.unpadded())), seconds=seconds)
    exact = structural_norm(map_)
    if exact is None:
        exact = frequency_bound(map_, seconds=seconds)
    return dense_bound(map_) if exact is None else exact
