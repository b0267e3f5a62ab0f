"""A local certificate as an object, and the one function that decides what it proves.

Whatever search found the certificate, and in whatever precision, only `proved_radius` says which radius holds: it
computes every bound again in float64 with all roundings charged, and trusts nothing that the certificate says.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.margins import margin_rows, positive_within
from robustres.certify.local.program import Program
from robustres.certify.local.sets import Region
from robustres.numerics import rounded_down
from robustres.threat import Norm


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is claimed about one image and what helps to prove it again.

    image: (*shape) float64. eps: the radius of the ball on which every relaxation is made, in pixel units.
    """

    image: Tensor
    label: int
    norm: Norm
    eps: float


def proved_radius(program: Program, certificate: Certificate) -> float:
    """The radius, at most `certificate.eps`, within which the exact network provably answers `label`.

    program: in float64. About images in [0, 1] where the image itself is one, else about all.
    """
    if program.dtype != torch.float64 or not (0 < certificate.eps < math.inf):
        return 0.0
    region = Region.ball(certificate.image[None].to(torch.float64), certificate.eps, certificate.norm)
    with torch.no_grad():
        bounds = bounded(program, region)
        label = torch.tensor([certificate.label], device=program.device)
        weights, owner = margin_rows(label, program.steps[-1].shape[0], torch.float64)
        form = pulled_back(program, Rows(len(program.steps) - 1, weights, owner), bounds.lines, bounds.sizes())
        radius = float(positive_within(form, region).min())
    return rounded_down(radius, 1) if math.isfinite(radius) else 0.0
