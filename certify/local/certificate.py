"""A local certificate as an object, and the radius that it proves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.local.evidence import Evidence
from robustres.certify.local.margins import margin_rows
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question
from robustres.certify.local.sets import Region
from robustres.numerics import rounded_down
from robustres.threat import Norm

NOTHING = Evidence()


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim about one image, and the evidence with which it can be proved again.

    image: (*shape) float64. eps: radius in pixel units of the ball for which the relaxations are made. evidence: its
    rows are the other classes in order.
    """

    image: Tensor
    label: int
    norm: Norm
    eps: float
    evidence: Evidence = NOTHING

    @property
    def methods(self) -> str:
        """The methods that prove it, in words."""
        return self.evidence.methods


def margins_question(image: Tensor, label: int, classes: int, norm: Norm, eps: float) -> Question:
    """Whether the label stays ahead of every other class on the ball around an image (*shape)."""
    region = Region.ball(image[None].to(torch.float64), eps, norm)
    rows, _ = margin_rows(torch.tensor([label], device=image.device), classes, torch.float64)
    return Question(region, rows, torch.zeros(len(rows), dtype=torch.float64, device=image.device))


def proved_radius(program: Program, certificate: Certificate) -> float:
    """The radius, at most `certificate.eps`, within which the exact network provably answers `label`.

    program: in float64. The radius concerns images in [0, 1]^n if the image itself lies there, otherwise all inputs.
    """
    if program.dtype != torch.float64 or not (0 < certificate.eps < math.inf):
        return 0.0
    classes = program.steps[-1].shape[0]
    question = margins_question(certificate.image, certificate.label, classes, certificate.norm, certificate.eps)
    radius = float(Proof.of(program, question, certificate.evidence).radii.min())
    return 0.0 if not math.isfinite(radius) else radius if radius >= certificate.eps else rounded_down(radius, 1)
