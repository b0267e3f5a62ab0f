"""One instance of the neural network verification competition: a network, a set of inputs, forbidden outputs."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor

from robustres.certify.local.local_radii import local_program
from robustres.certify.local.output_property import Forbidden, excluded
from robustres.errors import DataError, InputError, MissingExtraError
from robustres.evaluation.forbidden_outputs import Part
from robustres.evaluation.vnnlib import Property, read_vnnlib
from robustres.models import load_model

RESTARTS, STEPS = 4, 40
# How far inside a ball the search stays, since its distances are rounded.
INSIDE = 1e-5


@dataclass(frozen=True, eq=False)
class Verdict:
    """result: "sat" if a forbidden output occurs, "unsat" if none can, "timeout" or "unknown" if neither is shown.
    example: the input (n,) in float32 and the output, checked with onnxruntime; None unless sat. assignment: the same
    in the form that the property's language prescribes.
    """

    result: Literal["sat", "unsat", "unknown", "timeout"]
    example: tuple[Tensor, Tensor] | None = None
    assignment: str = ""


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

    unsat refers to the network in exact arithmetic; for tensors that VNN-LIB 2 declares as float32, to every execution
    that computes each operation in float32, in any order of its sums. sat refers to the float32 outputs of onnxruntime.
    timeout: in seconds, approximate: a step that has begun is finished.
    """
    deadline = monotonic() + timeout
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("verifying ONNX files", "onnx") from error
    question = read_vnnlib(statement)
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    name, shape = _matching_input(session, question)
    model = load_model(str(network), input_shape=shape[1:]).module
    for part in question.parts:
        for candidate in _candidates(model, part, shape):
            answer = torch.from_numpy(session.run(None, {name: candidate.numpy()})[0]).flatten().double()
            x = candidate.flatten()
            if question.violated(x, answer):
                return Verdict("sat", (x, answer), question.assignment(x, answer))
    runs = torch.float32 if question.declared is not None and question.declared[0].kind == "float32" else None
    made = local_program(model, shape[1:], runs=runs)
    for left, part in zip(range(len(question.parts), 0, -1), question.parts, strict=True):
        now = monotonic()
        if not excluded(made, part.region.reshape(shape), part.cases, deadline=now + (deadline - now) / left):
            return Verdict("timeout" if monotonic() > deadline else "unknown")
    return Verdict("unsat")


def _matching_input(session: Any, question: Property) -> tuple[str, tuple[int, ...]]:
    """The name of the network's input and its shape, dynamic sizes as the property declares them, else 1."""
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise InputError("the network must have one input and one output")
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    if {source.type, target.type} != {"tensor(float)"}:
        raise InputError(f"the network must be one in float32, got {source.type} to {target.type}")
    sides = tuple(side if isinstance(side, int) else 1 for side in source.shape)
    if question.declared is not None:
        for node, declared in zip((source, target), question.declared, strict=True):
            known = [side if isinstance(side, int) else other
                     for side, other in zip(node.shape, declared.shape, strict=False)]  # fmt: skip
            if len(node.shape) != len(declared.shape) or tuple(known) != declared.shape:
                raise InputError(
                    f"the property declares {declared.name} with shape {list(declared.shape)}, the network has "
                    f"{node.shape}"
                )
        sides = question.declared[0].shape
    if math.prod(sides) != question.inputs or sides[:1] != (1,):
        raise InputError(
            f"the network takes inputs of shape {list(sides)}, which must be one sample of the property's "
            f"{question.inputs} inputs"
        )
    return source.name, sides


def _candidates(model: torch.nn.Module, part: Part, shape: tuple[int, ...]) -> list[Tensor]:
    """Inputs in float32 that come closest to each case: signed gradient steps from random starts.

    They lie within the part's box; on the way, they are drawn into its ball.
    """
    generator = torch.Generator().manual_seed(0)
    region = part.region.reshape(shape)
    lower, upper = region.bounds
    low, high = lower.to(torch.float32), upper.to(torch.float32)
    low = torch.where(low.double() < lower, torch.nextafter(low, high), low)
    high = torch.where(high.double() > upper, torch.nextafter(high, low), high)
    centre, eps = region.centre.to(torch.float32), float(region.eps[0]) * (1 - INSIDE)
    found = []
    for case in part.cases:

        def excess(x: Tensor, case: Forbidden = case) -> Tensor:
            outputs: Tensor = model(x)
            return (outputs @ case.rows.float().T - case.limits.float()).amax(dim=1)

        x = low + (high - low) * torch.rand(RESTARTS, *shape[1:], generator=generator)
        for step in range(STEPS):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(excess(x).sum(), x)
            x = x - (high - low) * (0.25 * (1 - step / STEPS)) * slope.sign()
            x = torch.minimum(torch.maximum(x, low), high)
            if region.norm == "l2":
                change = (x - centre).flatten(1)
                x = centre + (x - centre) * _per_sample(eps / change.norm(dim=1).clamp_min(eps), x)
        with torch.no_grad():
            found.append(x.detach()[excess(x).argmin()][None])
    return found


def _per_sample(factor: Tensor, x: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (x.ndim - 1))
