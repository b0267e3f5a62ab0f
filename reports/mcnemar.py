"""Whether two networks differ on the same images: exact McNemar test, and Holm's correction for multiple tests."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mcnemar_p(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Two-sided exact p-value of the hypothesis that paired outcomes (N,) have equal shares (McNemar 1947, exact
    binomial form).

    Only samples on which the two differ carry information; without any, the p-value is 1.

    >>> mcnemar_p(np.array([True] * 8), np.array([False] * 8))
    0.0078125
    """
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    log_terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    top = max(log_terms)
    log_tail = top + math.log(math.fsum(math.exp(term - top) for term in log_terms)) - n * math.log(2)
    return round(min(1.0, 2 * math.exp(log_tail)), 15)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple testing (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
