"""The margins of one class over the others as rows of the logits, and the radius within which forms stay positive."""

import torch
from torch import Tensor

from robustres.certify.local.backward import Form
from robustres.certify.local.sets import Region

HALVINGS = 40


def margin_rows(labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """z_label - z_j for every other class j of every sample: rows (N (classes - 1), classes) and their owners."""
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    rows = eye[labels][:, None, :] - eye[None]
    others = torch.arange(classes, device=labels.device)[None] != labels[:, None]
    owner = torch.arange(len(labels), device=labels.device)[:, None].expand(-1, classes)
    return rows[others], owner[others]


def positive_within(form: Form, region: Region) -> Tensor:
    """(R,) the largest radius, at most its owner's eps, at which the form was found positive; 0 if there is none.

    A form holds on the whole region for which it was computed, so its minimum at every smaller radius is a bound there.
    """
    low, high = torch.zeros_like(form.constant), region.eps[form.owner].clone()
    whole = form.minimum(region) > 0
    if bool(whole.all()):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        holds = form.minimum(region, middle) > 0
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return torch.where(whole, region.eps[form.owner], low)
