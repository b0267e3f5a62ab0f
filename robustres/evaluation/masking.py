"""Whether the attacks of an evaluation were misled by masked gradients, judged on some of the samples."""

from typing import Any

import torch
from torch import nn

from robustres.attacks import diagnose, make_attack
from robustres.data import ImageSet
from robustres.evaluation.settings import Settings
from robustres.threat import ThreatModel


def diagnosis_rows(
    model: nn.Module, data: ImageSet, settings: Settings, *, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of the table "diagnosis": PGD at the largest eps of each norm, on the first `settings.diagnose` samples."""
    chosen = data.first(settings.diagnose)
    images, labels = chosen.images.to(device), chosen.labels.to(device)
    rows: list[dict[str, Any]] = []
    for norm, budgets in settings.eps.items():
        attack = make_attack(
            "pgd",
            ThreatModel(norm, max(budgets)),
            seed=settings.seed,
            batch_size=settings.images_at_once(data.image_shape),
            **settings.attack_settings.get("pgd", {}),
        )
        rows += diagnose(model, images, labels, attack, indices=torch.arange(len(chosen))).rows()
    return rows
