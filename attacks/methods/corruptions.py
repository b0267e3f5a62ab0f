"""Random corruptions of the size of an attack's ball: the average case beside the worst case.

Each draws one image per sample, at distance eps where the box allows it, and evaluates the model once. The accuracy
under corruption is not a measure of robustness: reports use it to show how far the worst case is from the random case.
The kinds follow Hendrycks and Dietterich (2019), scaled to the threat's norm and eps instead of a severity.
"""

import io
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.randomness import normal, sample_keys
from robustres.attacks.search.targets import refuse_targeted
from robustres.errors import DataError
from robustres.numerics import distance

JPEG_QUALITY = 10
BISECTIONS = 40  # of the factor that scales a corruption to distance eps


class Corruption(Attack):
    """One corrupted image per sample, at distance eps or, if the corruption has no such image, as far as it goes."""

    follows_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_budget()

    @abstractmethod
    def changes(self, x: Tensor, keys: Tensor) -> tuple[Tensor, float]:
        """The change of images (B, C, H, W) by the corruption, and the largest factor by which it may be scaled up."""

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        keys = sample_keys(self.seed, problem.index, torch.zeros_like(problem.index))
        for rows in in_parts((~ledger.fooled).nonzero().flatten(), self.batch_size):
            x = problem.x[rows].double()
            change, most = self.changes(x, keys[rows])
            ledger.offer(rows, self._of_size(x, change, most).to(problem.dtype))

    def _of_size(self, x: Tensor, change: Tensor, most: float) -> Tensor:
        """Images x + t change, clipped to [0, 1], with the largest t up to `most` for which they lie within eps."""
        low, high = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.full((len(x),), most).to(x)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = distance((x + per_sample(middle, x) * change).clamp(0, 1) - x, self.threat.norm) <= self.threat.eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return (x + per_sample(low, x) * change).clamp(0, 1)


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Independent normal noise on every channel value, scaled to distance eps: an average case."""

    kind: ClassVar[str] = "gaussian-noise"

    def changes(self, x: Tensor, keys: Tensor) -> tuple[Tensor, float]:
        noise = normal(keys, tuple(x.shape[1:]), dtype=torch.float64)
        return noise / distance(noise, self.threat.norm).reshape(-1, 1, 1, 1), 1e3 * self.threat.eps


@dataclass(frozen=True)
class LowContrast(Corruption):
    """Every channel moved towards its mean over the image until distance eps: an average case."""

    kind: ClassVar[str] = "low-contrast"

    def changes(self, x: Tensor, keys: Tensor) -> tuple[Tensor, float]:
        return x.mean(dim=(2, 3), keepdim=True) - x, 1.0


@dataclass(frozen=True)
class JPEG(Corruption):
    """The change by JPEG compression of quality 10, scaled down to lie within eps where necessary: an average case."""

    kind: ClassVar[str] = "jpeg"

    def changes(self, x: Tensor, keys: Tensor) -> tuple[Tensor, float]:
        if x.shape[1] not in (1, 3):
            raise DataError(f"JPEG is defined for images of 1 or 3 channels, got {x.shape[1]}; leave jpeg out")
        return torch.stack([_compressed(image) for image in x.cpu()]).to(x) - x, 1.0


def _compressed(image: Tensor) -> Tensor:
    """An image (C, H, W) in [0, 1] after JPEG compression."""
    levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(file, "JPEG", quality=JPEG_QUALITY)
    decoded = np.asarray(Image.open(file), dtype=np.float64).reshape(levels.shape) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1)
