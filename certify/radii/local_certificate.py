"""Radii by local bounds around each image, as a certificate like the others."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.graph.capture import device_of
from robustres.certify.local.local_radii import LocalRadius, each_local_radius, local_program
from robustres.certify.local.program import Program, program
from robustres.certify.proof.bound import Guarantee
from robustres.certify.radii.radius_column import NETWORK, RadiusColumn
from robustres.errors import InputError
from robustres.threat import Norm

# A search may reach slightly beyond a known adversarial example, so that a wrong proof would be detected.
BEYOND = 1 + 1e-4


@dataclass(frozen=True)
class LocalCertificate:
    """Linear bounds propagated around every image, searched in float32 and proved in float64.

    Guaranteed: no image in [0, 1]^n within `radius` of x, in `norm` and pixel units, is classified differently by the
    model in exact arithmetic with its given weights; the rounding of the proof itself is accounted for. (For an x
    outside [0, 1]^n: no input at all within the radius.) seconds: of one core for each image, a guide. report: of
    `lipschitz` on this model, which saves capturing it again. aims: target radii; the time is then spent on proving the
    largest of them instead of any radius. distances: of adversarial examples in this norm, by the sample's number in
    its data set; the search does not go far beyond them. tell: called after each image with the sample's number, the
    result, and the network as it was bounded.
    """

    norm: Norm = "linf"
    seconds: float = 5.0
    report: LipschitzReport | None = None
    aims: tuple[float, ...] = ()
    distances: Mapping[int, float] = field(default_factory=dict)
    tell: Callable[[int, LocalRadius, Program], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError(f"seconds must be positive, for each image, got {self.seconds:g}")

    @property
    def name(self) -> str:
        """The name in the tables of a run."""
        return "local"

    def telling(self, tell: Callable[[int, LocalRadius, Program], None]) -> Self:
        """The same certificate with this callback after each image."""
        return replace(self, tell=tell)

    def beside(self, distances: Mapping[int, float]) -> Self:
        """The same certificate with these distances of known adversarial examples."""
        return replace(self, distances=distances)

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        """Radii at images (N, C, H, W); UnsupportedOperationError names every operation without a relaxation."""
        analysis = self.report.analysis if self.report is not None else None
        if analysis is None:
            made = local_program(model, tuple(x.shape[1:]))
        else:
            analysis.require_same_model(model, x.detach().to(device_of(analysis.captured.module), torch.float64))
            made = program(analysis.captured, analysis.network)
        above = None
        if indices is not None and self.distances:
            known = [self.distances.get(int(index), math.inf) * BEYOND for index in indices]
            above = torch.tensor(known, dtype=torch.float64)
        radii, answers, sources = [], [], []
        numbers = range(len(x)) if indices is None else indices.tolist()
        each = each_local_radius(made, x, norm=self.norm, seconds=self.seconds, aims=self.aims, above=above)
        for number, one in zip(numbers, each, strict=True):
            if self.tell is not None:
                self.tell(number, one, made)
            radii.append(one.radius)
            answers.append(one.prediction)
            sources.append(one.certificate.methods if one.certificate is not None else self.name)
        return RadiusColumn(
            radius=torch.tensor(radii, dtype=torch.float64),
            prediction=torch.tensor(answers),
            source=tuple(sources),
            function=NETWORK,
            norm=self.norm,
            guarantee=Guarantee(),
        )
