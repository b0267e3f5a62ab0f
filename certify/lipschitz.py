"""From a model to the bound of its Lipschitz constant, block by block."""

from dataclasses import replace
from time import perf_counter
from typing import Literal, get_args

import torch
from torch import nn

from robustres.certify import rules_activation, rules_arithmetic, rules_linear, rules_pooling, rules_shape
from robustres.certify.block_row import BlockRow
from robustres.certify.blocks import Bounder, unique_names
from robustres.certify.capture import BATCH, Captured, capture, device_of
from robustres.certify.head import Head
from robustres.certify.jacobian import steepest_directions
from robustres.certify.linear_map import Shape
from robustres.certify.network import Linear, Node
from robustres.certify.report import LipschitzReport, multiplied, with_lower
from robustres.certify.rules import build_network
from robustres.certify.simplify import simplified
from robustres.errors import DefectiveBoundError, InputError, Refusal, UnsupportedOperationError
from robustres.numerics import require_certifiable_arithmetic

Norm = Literal["l2", "linf"]
Piece = tuple[Node, Node, BlockRow]
RULE_FILES = (rules_activation, rules_arithmetic, rules_linear, rules_pooling, rules_shape)
Refuse = Literal["raise", "record"]


def lipschitz(
    model: nn.Module,
    input_shape: Shape,
    *,
    norm: Norm = "l2",
    joint: bool = True,
    seconds: float | None = None,
    delta: float | None = None,
    lower_steps: int = 8,
    refuse: Refuse = "raise",
    generator: torch.Generator | None = None,
) -> LipschitzReport:
    """Bound the Lipschitz constant of a model's logits, in evaluation mode, over all inputs of one shape.

    Guaranteed: `report.upper` is at or above the constant of the model evaluated in exact arithmetic (deterministic
    unless `delta` is given); so is each row for its block. The lower ends are estimates and guarantee nothing.

    model: any module that maps (N, *input_shape) to (N, classes); it is copied to float64 and left as it is.
    joint: also bound residual blocks jointly; False computes the textbook bound only, in a fraction of the time.
    seconds: guide for the time spent on each piece. delta: failure probability that each probabilistic bound may
        spend; None allows deterministic methods only.
    lower_steps: power iterations of the lower estimates; 0 leaves them out.
    refuse: "raise" an UnsupportedOperationError that lists every operation without a rule, or "record" them in the
        report, whose `upper` is then infinite.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> report = lipschitz(model, (1, 2, 2))
    >>> [row.kind for row in report.blocks]
    ['linear', 'head']
    """
    if norm not in ("l2", "linf"):
        raise InputError(f"norm must be l2 or linf, got {norm!r}")
    if refuse not in get_args(Refuse):
        raise InputError(f"refuse must be raise or record, got {refuse!r}")
    require_certifiable_arithmetic(device_of(model))
    start = perf_counter()
    input_shape = tuple(input_shape)
    try:
        captured = capture(model, input_shape)
        network, refused = build_network(captured)
    except UnsupportedOperationError as error:
        network, refused = None, error.refused
    if network is None:
        if refuse == "raise":
            raise UnsupportedOperationError(refused)
        return _refusal(input_shape, norm, refused, perf_counter() - start)
    output = simplified(network)
    order = output.ordered()
    main = Bounder(order, norm, joint=joint, seconds=seconds, delta=delta)
    with torch.no_grad():
        pieces = main.rows(output)
        linf = _upper(Bounder(order, "linf", joint=False).rows(output))
        head = _head(order, output, main if norm == "l2" else Bounder(order, "l2", joint=joint, seconds=seconds))
    rows = _with_estimates(captured, pieces, lower_steps if norm == "l2" else 0, generator)
    upper, guarantee = multiplied(rows)
    whole = _estimate(captured, order[0], output, lower_steps if norm == "l2" else 0, generator)
    return LipschitzReport(
        input_shape=input_shape,
        norm=norm,
        blocks=rows,
        upper=upper,
        lower=_checked(whole, upper, "the whole network"),
        head=head,
        linf_upper=linf,
        seconds=perf_counter() - start,
        guarantee=guarantee,
    )


def _refusal(shape: Shape, norm: Norm, refused: tuple[Refusal, ...], seconds: float) -> LipschitzReport:
    return LipschitzReport(shape, norm, (), float("inf"), 0.0, refused, seconds=seconds)


def _upper(pieces: list[Piece]) -> float:
    return multiplied([row for _, _, row in pieces])[0]


def _head(order: list[Node], output: Node, main: Bounder) -> Head | None:
    """The last linear map, if the network ends in one, with the bounds of everything before it."""
    if not isinstance(output.piece, Linear):
        return None
    before = output.inputs[0]
    body, guarantee = multiplied([row for _, _, row in main.rows(before)])
    linf = _upper(Bounder(order, "linf", joint=False).rows(before))
    return Head(output.piece.map, body, linf, guarantee)


def _with_estimates(
    captured: Captured, pieces: list[Piece], steps: int, generator: torch.Generator | None
) -> tuple[BlockRow, ...]:
    """The rows under unique names; blocks get the largest Jacobian norm at random points as their lower estimate."""
    names = unique_names(pieces)
    rows = []
    for (entry, end, row), name in zip(pieces, names, strict=True):
        estimate = 0.0
        if row.kind not in ("linear", "activation"):
            estimate = _checked(_estimate(captured, entry, end, steps, generator), row.upper, name)
        rows.append(with_lower(row, name, estimate))
    if pieces and isinstance(pieces[-1][1].piece, Linear):
        rows[-1] = replace(rows[-1], kind="head")
    return tuple(rows)


def _estimate(captured: Captured, entry: Node, end: Node, steps: int, generator: torch.Generator | None) -> float:
    """The largest Jacobian norm from `entry` to `end` at what random images lead to; 0 for no steps."""
    if steps == 0:
        return 0.0
    shape = (BATCH, *captured.source.meta["val"].shape[1:])
    draw = generator or torch.Generator().manual_seed(0)
    images = torch.rand(shape, dtype=torch.float64, generator=draw)
    with torch.no_grad():
        points = captured.run({captured.source: images.to(device_of(captured.module))}, entry.origin)
    start = torch.randn(points.shape, dtype=torch.float64, generator=draw).to(points.device)
    slopes = steepest_directions(
        lambda values: captured.run({entry.origin: values}, end.origin), points, start, steps=steps
    )
    return float(slopes.stretch.nan_to_num(0, 0, 0).max())


def _checked(estimate: float, upper: float, name: str) -> float:
    """The estimate, cut at the bound where rounding took it there; an estimate that is larger proves a defect."""
    if estimate > upper * (1 + 1e-9):
        raise DefectiveBoundError(
            f"{name}: the bound {upper:.17g} lies below the constant {estimate:.17g} that was attained; "
            "robustres is defective here: please report this model"
        )
    return min(estimate, upper)
