"""How samples are divided into training, validation and test splits: always with a fixed seed, class by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robustres.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_SEED = 20_240_501
VALIDATION_SHARE = 0.1


def require_split(split: str) -> None:
    """Raise DataError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def stratified_parts(labels: Tensor, shares: Sequence[float], *, seed: int = SPLIT_SEED) -> list[Tensor]:
    """Disjoint index sets with the given shares of every class (rounded), and one with the remaining samples, each
    sorted.

    >>> parts = stratified_parts(torch.tensor([0, 1] * 10), [0.1])
    >>> [len(part) for part in parts]
    [2, 18]
    """
    generator = np.random.default_rng(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.from_numpy(generator.permutation(len(members)))]
        cuts = torch.round(torch.tensor(shares, dtype=torch.float64).cumsum(0) * len(members)).long()
        for part, piece in zip(parts, torch.tensor_split(members, cuts), strict=True):
            part.append(piece)
    return [torch.cat(part).sort().values for part in parts]


def held_out(labels: Tensor, split: Split) -> Tensor:
    """Indices of the validation tenth, or of the rest, of a training set without a validation split."""
    validation, train = stratified_parts(labels, [VALIDATION_SHARE])
    return validation if split == "validation" else train


def split_folder(folder: Path, split: Split) -> tuple[Path, bool]:
    """The folder of a split's samples, and whether a validation tenth must be held out of them.

    In a folder with a `train` or `test` subfolder each split has its own subfolder; without a `validation` subfolder a
    fixed tenth of `train` is held out. A folder with neither is a single test split.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; check the path")
    if not any((folder / name).is_dir() for name in ("train", "test")):
        if split == "test":
            return folder, False
        raise DataError(
            f"{folder} has no {split} split; put the training samples in {folder / 'train'} and the test samples "
            f"in {folder / 'test'}"
        )
    own = (folder / "validation").is_dir()
    part = folder / ("train" if split == "validation" and not own else split)
    if not part.is_dir():
        raise DataError(f"{folder} has no {split} split; there is no folder {part}")
    return part, split != "test" and not own
