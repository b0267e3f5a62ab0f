"""Radii by local bounds around each image, as a certificate like the others."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from robustres.arguments import require_number
from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.graph.capture import Captured, capture, device_of
from robustres.certify.local.local_radii import LocalRadius, each_local_radius, program_of
from robustres.certify.local.program import Program
from robustres.certify.maps.nonlinear import Stated, StatedSort
from robustres.certify.proof.bound import Guarantee
from robustres.certify.radii.forward_rounding import require_covered_float32
from robustres.certify.radii.radius_column import NETWORK, RadiusColumn
from robustres.errors import InputError, Refusal, UnsupportedOperationError
from robustres.threat import Norm

# A search may reach slightly beyond a known adversarial example, so that a wrong proof would be detected.
BEYOND = 1 + 1e-4


@dataclass(frozen=True)
class LocalCertificate:
    """Linear bounds propagated around every image, searched in float32 and proved in float64.

    Guaranteed: no image in [0, 1]^n within `radius` of x, in `norm` and pixel units, is classified differently by the
    model in exact arithmetic with its given weights; the rounding of the proof itself is accounted for. (For an x
    outside [0, 1]^n: no input at all within the radius.) dtype: torch.float32 for the model as it runs in float32, in
    any order of its sums; quadratic certificates, which are about the exact model, are not used then, and
    PrecisionError names an operation whose rounding has no bound. seconds: of one core for each image, a guide. report:
    of `lipschitz` on this model, which saves capturing it again. aims: target radii; the time is then spent on proving
    the largest of them instead of any radius. distances: of adversarial examples in this norm, by the sample's number
    in its data set; the search does not go far beyond them. proved: radii of the same predictions by other
    certificates, with their sources, by the sample's number; only larger ones are looked for, and no smaller one is
    returned. tell: called after each image with the sample's number, the result, and the network as it was bounded.
    """

    norm: Norm = "linf"
    seconds: float = 5.0
    report: LipschitzReport | None = None
    aims: tuple[float, ...] = ()
    distances: Mapping[int, float] = field(default_factory=dict)
    proved: Mapping[int, tuple[float, str]] = field(default_factory=dict)
    tell: Callable[[int, LocalRadius, Program], None] | None = field(default=None, repr=False, compare=False)
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        require_number("seconds", self.seconds, positive=True)
        if self.dtype not in (torch.float64, torch.float32):
            raise InputError(f"certification runs in torch.float64 or torch.float32, got {self.dtype}")

    @property
    def name(self) -> str:
        """The name in the tables of a run."""
        return "local"

    def telling(self, tell: Callable[[int, LocalRadius, Program], None]) -> Self:
        """The same certificate with this callback after each image."""
        return replace(self, tell=tell)

    def beside(self, distances: Mapping[int, float], proved: Mapping[int, tuple[float, str]]) -> Self:
        """The same certificate with these distances of known adversarial examples and these proved radii."""
        return replace(self, distances=distances, proved=proved)

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        """Radii at images (N, C, H, W); UnsupportedOperationError names every operation without a relaxation."""
        analysis = self.report.analysis if self.report is not None else None
        if analysis is not None:
            analysis.require_same_model(model, x.detach().to(device_of(analysis.captured.module), torch.float64))
        if analysis is None or any(isinstance(node.piece, Stated | StatedSort) for node in analysis.network.ordered()):
            captured = capture(model, tuple(x.shape[1:]), opened=True)
        else:
            captured = analysis.captured
        require_classes(captured)
        if self.dtype == torch.float32:
            require_covered_float32(captured, model, x)
        made = program_of(captured, runs=self.dtype if self.dtype == torch.float32 else None)
        numbers = range(len(x)) if indices is None else indices.tolist()
        distances, others = ({}, {}) if indices is None else (self.distances, self.proved)
        above = [distances.get(number, math.inf) * BEYOND for number in numbers]
        proved = [others.get(number, (0.0, self.name)) for number in numbers]
        each = each_local_radius(
            made,
            x,
            norm=self.norm,
            seconds=self.seconds,
            aims=self.aims,
            above=torch.tensor(above, dtype=torch.float64),
            known=torch.tensor([radius for radius, _ in proved], dtype=torch.float64),
        )
        radii, answers, sources = [], [], []
        for number, one, (known, source) in zip(numbers, each, proved, strict=True):
            if self.tell is not None:
                self.tell(number, one, made)
            radii.append(max(one.radius, known))
            answers.append(one.prediction)
            sources.append(one.certificate.methods if one.certificate and one.radius > known else source)
        return RadiusColumn(
            radius=torch.tensor(radii, dtype=torch.float64),
            prediction=torch.tensor(answers),
            source=tuple(sources),
            function=NETWORK,
            norm=self.norm,
            guarantee=Guarantee(),
        )


def require_classes(captured: Captured) -> None:
    """Refuse a network whose answer for a sample is not a choice between two or more classes."""
    shape = tuple(captured.output.meta["val"].shape[1:])
    if len(shape) != 1 or shape[0] < 2:
        what = f"an answer of shape {shape} for each sample, which is not a choice between two or more classes"
        raise UnsupportedOperationError([Refusal("", what)])
