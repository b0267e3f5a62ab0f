"""How settings move over the steps of a training run; all pure functions of the step."""

import math


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear from 0 to 1 over the share `warmup` of all steps, then a cosine down to 0.

    >>> [round(learning_rate_factor(step, 10, 0.2), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = warmup * steps
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))


def eps_factor(step: int, steps: int, warmup: float) -> float:
    """Linear from 0 to 1 over the share `warmup` of all steps, then 1.

    >>> [eps_factor(step, 8, 0.5) for step in (0, 2, 4, 8)]
    [0.25, 0.75, 1.0, 1.0]
    """
    rising = warmup * steps
    return 1.0 if step >= rising else min(1.0, (step + 1) / rising)
