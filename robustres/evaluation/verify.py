"""One instance of the neural network verification competition: a network, a box of inputs, forbidden outputs."""

import csv
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.local.local_radii import local_program
from robustres.certify.local.output_property import excluded
from robustres.certify.local.sets import Region
from robustres.errors import DataError, InputError, MissingExtraError
from robustres.evaluation.vnnlib import Property, read_vnnlib
from robustres.models import load_model

RESTARTS, STEPS = 4, 40


@dataclass(frozen=True, eq=False)
class Verdict:
    """result: "sat" if a forbidden output occurs, "unsat" if none can, "timeout" or "unknown" if neither is shown.
    example: the input (n,) in float32 and the output, checked with onnxruntime; None unless sat.
    """

    result: Literal["sat", "unsat", "unknown", "timeout"]
    example: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Instance:
    """One line of a file of instances."""

    network: Path
    statement: Path
    timeout: float


def read_instances(path: Path) -> list[Instance]:
    """The instances in a file of the competition: lines `network,property,timeout`, paths relative to the file.

    If a file does not exist but does with the suffix .gz, that file is used. DataError says which line is wrong.
    """
    found = []
    try:
        lines = list(csv.reader(path.read_text().splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the instances {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            network, statement, timeout = line
            seconds = float(timeout)
        except ValueError:
            raise DataError(f"{path}, line {number}: expected network,property,timeout, got {','.join(line)}") from None
        if not seconds > 0:
            raise DataError(f"{path}, line {number}: the timeout must be positive, got {timeout}")
        found.append(Instance(_beside(path, network), _beside(path, statement), seconds))
    return found


def _beside(path: Path, name: str) -> Path:
    file = path.parent / name.strip()
    packed = file.with_name(f"{file.name}.gz")
    return packed if not file.exists() and packed.exists() else file


def verify(network: Path, statement: Path, *, timeout: float) -> Verdict:
    """Decide one instance.

    unsat refers to the network in exact arithmetic; sat to the float32 outputs of onnxruntime. timeout: in seconds,
    approximate: a step that has begun is finished.
    """
    deadline = monotonic() + timeout
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("verifying ONNX files", "onnx") from error
    question = read_vnnlib(statement)
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    shape = tuple(1 if not isinstance(side, int) else side for side in source.shape)
    if torch.Size(shape).numel() != len(question.lower):
        raise InputError(f"the network takes inputs of shape {shape}, the property has {len(question.lower)} inputs")
    model = load_model(str(network), input_shape=shape[1:]).module
    for candidate in _candidates(model, question, shape):
        answer = torch.from_numpy(session.run(None, {source.name: candidate.numpy()})[0]).flatten().double()
        if any(bool((case.rows @ answer <= case.limits).all()) for case in question.cases):
            return Verdict("sat", (candidate.flatten(), answer))
    made = local_program(model, shape[1:])
    region = Region.box(question.lower.reshape(shape), question.upper.reshape(shape))
    if excluded(made, region, question.cases, deadline=deadline):
        return Verdict("unsat")
    return Verdict("timeout" if monotonic() > deadline else "unknown")


def _candidates(model: torch.nn.Module, question: Property, shape: tuple[int, ...]) -> list[Tensor]:
    """Inputs in float32 within the box that come closest to each case: signed gradient steps from random starts."""
    generator = torch.Generator().manual_seed(0)
    low, high = (side.to(torch.float32).reshape(shape) for side in (question.lower, question.upper))
    low = torch.where(low.double() < question.lower.reshape(shape), torch.nextafter(low, high), low)
    high = torch.where(high.double() > question.upper.reshape(shape), torch.nextafter(high, low), high)
    found = []
    for case in question.cases:
        x = low + (high - low) * torch.rand(RESTARTS, *shape[1:], generator=generator)
        for step in range(STEPS):
            x = x.detach().requires_grad_()
            excess = (model(x) @ case.rows.float().T - case.limits.float()).amax(dim=1)
            (slope,) = torch.autograd.grad(excess.sum(), x)
            x = x - (high - low) * (0.25 * (1 - step / STEPS)) * slope.sign()
            x = torch.minimum(torch.maximum(x, low), high)
        with torch.no_grad():
            excess = (model(x) @ case.rows.float().T - case.limits.float()).amax(dim=1)
        found.append(x.detach()[excess.argmin()][None])
    return found
