"""The embedded default: the UCI optical digits, 1,797 scanned digits of 8 x 8, shipped inside the package.

E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0; see digits-credit.txt.
"""

from importlib.resources import files

import numpy as np
import torch

from robustres.data.image_set import ImageSet
from robustres.data.splits import SPLIT_SEED, Split, stratified_parts

LARGEST_PIXEL = 16
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def digits(split: Split = "test") -> ImageSet:
    """One of the fixed splits train (1,258), validation (179) and test (360), stratified by class.

    Pixels are the original counts 0..16 divided by 16, one channel, 8 x 8.
    """
    with files("robustres.data").joinpath("digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        images = torch.from_numpy(archive["images"]).unsqueeze(1).float() / LARGEST_PIXEL
        labels = torch.from_numpy(archive["labels"]).long()
    validation, test, train = stratified_parts(labels, [VALIDATION_SHARE, TEST_SHARE])
    chosen = {"train": train, "validation": validation, "test": test}[split]
    names = tuple("0123456789")
    return ImageSet(images[chosen], labels[chosen], names, f"digits ({split})", split=split, split_seed=SPLIT_SEED)
