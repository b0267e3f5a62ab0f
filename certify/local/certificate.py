"""A local certificate as an object, and the one function that decides what it proves.

Whatever search found the certificate, and in whatever precision, only `proved_radius` says which radius holds: it
computes every bound again in float64 with all roundings charged, and trusts nothing that the certificate says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.intermediate import Bounds, bounded
from robustres.certify.local.margins import margin_rows, positive_within
from robustres.certify.local.program import Program
from robustres.certify.local.quadratic import Quadratic, proved_change, sectors
from robustres.certify.local.sets import Region
from robustres.numerics import rounded_down
from robustres.threat import Norm


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is claimed about one image and what helps to prove it again.

    image: (*shape) float64. eps: the radius of the ball on which every relaxation is made, in pixel units.
    quadratics: by class, multipliers for the difference of the label's logit and that class's.
    """

    image: Tensor
    label: int
    norm: Norm
    eps: float
    quadratics: Mapping[int, Quadratic] = field(default_factory=dict)

    @property
    def methods(self) -> str:
        """What proves it, in words."""
        return "local, quadratic" if self.quadratics else "local, linear"


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
        rows = Rows(len(program.steps) - 1, weights, owner)
        radii = positive_within(pulled_back(program, rows, bounds.lines, bounds.sizes()), region)
        if certificate.quadratics:
            radii = torch.maximum(radii, _by_quadratics(program, certificate, region, bounds, rows))
        radius = float(radii.min())
    return rounded_down(radius, 1) if math.isfinite(radius) else 0.0


def _by_quadratics(program: Program, certificate: Certificate, region: Region, bounds: Bounds, rows: Rows) -> Tensor:
    """(classes - 1,) the radii that the quadratic certificates prove; 0 for classes without one.

    In l2 the change grows at most in proportion to the radius; in linf it is proved at eps alone.
    """
    point = region.with_eps(0.0)
    centre = bounded(program, point)
    margins = pulled_back(program, rows, centre.lines, centre.sizes()).minimum(point)
    slopes = sectors(program, bounds, centre)
    others = [j for j in range(program.steps[-1].shape[0]) if j != certificate.label]
    radii = torch.zeros_like(margins)
    for place, other in enumerate(others):
        found = certificate.quadratics.get(other)
        if found is None:
            continue
        margin = float(margins[place])
        change = proved_change(program, slopes, rows.weights[place : place + 1], region, found)
        if change < margin:
            radii[place] = certificate.eps
        elif certificate.norm == "l2" and margin > 0:
            radii[place] = rounded_down(certificate.eps * (margin / change), 4)
    return radii
