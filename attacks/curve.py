"""Robust accuracy against eps, from the distances of one minimum-norm attack."""

from collections.abc import Sequence

from robustres.attacks.base.result import AttackResult


def accuracy_curve(result: AttackResult, eps: Sequence[float]) -> list[float]:
    """Share of samples without an example within each eps: an upper bound on the robust accuracy there.

    Use the result of a minimum-norm attack (ldn, fab, deepfool, fmn; sigma-zero in l0) with an unbounded threat: one
    run serves every eps. Samples that were misclassified from the start are at distance 0 and count as not robust.
    """
    total = max(len(result), 1)
    return [int((result.distance > radius).sum()) / total for radius in eps]
