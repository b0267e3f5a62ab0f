"""The interface of certificates, and the best of several: the largest radius per sample, function and kind."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from robustres.certify.proof.bound import all_hold
from robustres.certify.radii.radius_column import ColumnKey, RadiusColumn
from robustres.errors import DefectiveBoundError, InputError


class Certificate(Protocol):
    """Anything that returns radii: `NetworkCertificate`, `RandomisedSmoothing`, local bounds by propagation.

    An own certificate is a frozen dataclass of its settings with these two members; the column that it returns states
    which function the radii concern, in which norm, and with what guarantee.
    """

    @property
    def name(self) -> str:
        """The name in the column `source` for the radii of this certificate."""
        ...

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        """Radii at images (N, C, H, W); `indices` (N,) are the samples' numbers in their data set."""
        ...


def certify_best(
    model: nn.Module, x: Tensor, certificates: Sequence[Certificate], *, indices: Tensor | None = None
) -> tuple[RadiusColumn, ...]:
    """The radii of all certificates, with the best per sample in each common column; see `best_radii`.

    >>> from robustres.certify import NetworkCertificate, RandomisedSmoothing
    >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
    >>> vote = RandomisedSmoothing(0.25, estimation_samples=100)
    >>> [(c.function, str(c.guarantee)) for c in certify_best(model, x, [NetworkCertificate(), vote])]
    [('network', 'deterministic'), ('smoothed(sigma=0.25)', 'probability 1 - 0.001')]
    """
    return best_radii([certificate(model, x, indices=indices) for certificate in certificates])


def best_radii(columns: Sequence[RadiusColumn]) -> tuple[RadiusColumn, ...]:
    """One column for each function, norm and kind of guarantee: per sample, the largest radius and its source.

    A radius of the network is never compared with one of a smoothed classifier, nor a deterministic radius with a
    probabilistic one. Choosing among probabilistic radii requires all of them to hold, so their failure probabilities
    add. Earlier columns win ties.

    Raises DefectiveBoundError if two deterministic certificates guarantee different predictions for the same sample.
    """
    groups: dict[ColumnKey, list[RadiusColumn]] = {}
    for column in columns:
        groups.setdefault(column.key, []).append(column)
    return tuple(_merged(key, group) for key, group in groups.items())


def _merged(key: ColumnKey, group: Sequence[RadiusColumn]) -> RadiusColumn:
    if len(group) == 1:
        return group[0]
    if len({len(column) for column in group}) != 1:
        raise InputError(f"columns to choose from must have one length, got {[len(column) for column in group]}")
    radii = torch.stack([column.radius.cpu() for column in group])
    answers = torch.stack([column.prediction.cpu() for column in group])
    best = radii.max(dim=0).values
    chosen = (radii == best).int().argmax(dim=0)
    answer = answers.gather(0, chosen[None])[0]
    contradicted = ((radii > 0) & (answers != answer)).any(dim=0)
    if key.deterministic and bool(contradicted.any()):
        index = int(contradicted.int().argmax())
        names = sorted({column.source[index] for column in group})
        raise DefectiveBoundError(
            f"sample {index}: the certificates {' and '.join(names)} promise different answers of the same function; "
            "one of them is defective: please report this run"
        )
    return RadiusColumn(
        radius=torch.where(contradicted, torch.zeros_like(best), best),
        prediction=answer,
        source=tuple(group[row].source[sample] for sample, row in enumerate(chosen.tolist())),
        function=key.function,
        norm=key.norm,
        guarantee=all_hold(column.guarantee for column in group),
    )
