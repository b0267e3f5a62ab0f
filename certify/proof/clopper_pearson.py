"""A lower confidence bound on a probability from observed frequencies, never rounded up."""

import math

from scipy.special import betainc, betaincinv

from robustres.errors import InputError

# The incomplete beta function of scipy (Boost) is accurate to about 1e-13; an error of 1e5 times that is assumed.
_BETA_ERROR = 1e-8


def lower_confidence_bound(successes: int, trials: int, failure_probability: float) -> float:
    """A number that exceeds the success probability with probability at most `failure_probability`.

    The exact (Clopper-Pearson) bound: the p at which `successes` or more out of `trials` occur with probability
    `failure_probability`, which is a quantile of Beta(successes, trials - successes + 1). It is lowered until the
    distribution function, evaluated including its error, confirms it.

    Source: Clopper and Pearson (1934), Biometrika 26; the one-sided form.

    >>> round(lower_confidence_bound(100, 100, 0.001), 6) == round(0.001 ** (1 / 100), 6)
    True
    """
    if not 0 <= successes <= trials or trials < 1:
        raise InputError(f"successes must lie in 0 .. trials and trials be at least 1, got {successes} of {trials}")
    if not 0 < failure_probability < 1:
        raise InputError(f"failure_probability must lie strictly between 0 and 1, got {failure_probability:g}")
    if successes == 0:
        return 0.0
    tail = (float(successes), float(trials - successes + 1))
    bound = float(betaincinv(*tail, failure_probability))
    shrink = 1e-10
    while math.isnan(bound) or float(betainc(*tail, bound)) > failure_probability * (1 - _BETA_ERROR):
        bound = 0.0 if math.isnan(bound) else bound * (1 - shrink)
        shrink = min(0.5, 2 * shrink)
    return bound
