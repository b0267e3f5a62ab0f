"""From a model to the bound of its Lipschitz constant, block by block."""

from dataclasses import replace
from time import perf_counter
from typing import Literal, get_args

import torch
from torch import nn

from robustres.certify import rules_activation, rules_arithmetic, rules_linear, rules_pooling, rules_shape
from robustres.certify.analysis import Analysis
from robustres.certify.block_row import BlockRow
from robustres.certify.blocks import unique_names
from robustres.certify.capture import BATCH, Captured, capture, device_of
from robustres.certify.head import Head
from robustres.certify.jacobian import steepest_directions
from robustres.certify.joint import DEFAULT_EFFORT
from robustres.certify.linear_map import Shape
from robustres.certify.network import Linear, Node
from robustres.certify.remembered import BoundMemory, Known, RememberingBounder, network_key
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
    effort: float = DEFAULT_EFFORT,
    seconds: float | None = 2.0,
    delta: float | None = None,
    lower_steps: int = 8,
    refuse: Refuse = "raise",
    generator: torch.Generator | None = None,
    store: BoundMemory | None = None,
) -> LipschitzReport:
    """Bound the Lipschitz constant of a model's logits, in evaluation mode, over all inputs of one shape.

    Guaranteed: `report.upper` is at or above the constant of the model evaluated in exact arithmetic (deterministic
    unless `delta` is given); so is each row for its block. The lower ends are estimates and guarantee nothing.

    model: any module that maps (N, *input_shape) to (N, classes); it is copied to float64 and left as it is.
    joint: also bound residual blocks jointly; False computes the textbook bound only, in a fraction of the time.
    effort: how much each joint bound may cost, in seconds of a nominal core; the same effort gives the same bound.
    seconds: guide for each linear map, in seconds of a nominal core; None tries every torus.
    delta: failure probability that each probabilistic bound may spend; None allows deterministic methods only.
    lower_steps: power iterations of the lower estimates; 0 leaves them out.
    refuse: "raise" an UnsupportedOperationError that lists every operation without a rule, or "record" them in the
        report, whose `upper` is then infinite.
    store: where bounds of the very same network, settings and certifier are looked for, and kept.

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
    steps = lower_steps if norm == "l2" else 0
    settings = {
        "norm": norm, "joint": joint, "effort": effort, "seconds": seconds, "delta": delta, "steps": steps,
        "device": device_of(model).type,
    }  # fmt: skip
    key = network_key(captured, order, settings) if store is not None and generator is None else None
    known = Known.from_text(store.load(key)) if store is not None and key is not None else Known()
    remembered = known.complete
    bounders = {
        "l2": RememberingBounder(
            order, joint=joint, effort=effort, seconds=seconds, delta=delta, known=known.rows["l2"]
        ),
        "linf": RememberingBounder(order, norm="linf", joint=False, known=known.rows["linf"]),
    }
    with torch.no_grad():
        pieces = {name: bounder.rows(output) for name, bounder in bounders.items()}
        whole = {name: multiplied([row for _, _, row in found]) for name, found in pieces.items()}
        head = _head(output, bounders)
    if not remembered:
        known.lower = _estimate(captured, order[0], output, steps, generator)
        known.block_lower = _block_estimates(captured, pieces[norm], steps, generator)
    upper, guarantee = whole[norm]
    report = LipschitzReport(
        input_shape=input_shape,
        norm=norm,
        blocks=_with_estimates(pieces[norm], known.block_lower),
        upper=upper,
        lower=_checked(known.lower, upper, "the whole network"),
        l2_upper=whole["l2"][0],
        linf_upper=whole["linf"][0],
        head=head,
        seconds=perf_counter() - start,
        guarantee=guarantee,
        analysis=Analysis(captured, network, output, bounders["l2"]),
    )
    if store is not None and key is not None and not remembered:
        store.save(key, known.to_text())
    return report


def _refusal(shape: Shape, norm: Norm, refused: tuple[Refusal, ...], seconds: float) -> LipschitzReport:
    return LipschitzReport(shape, norm, (), float("inf"), 0.0, refused, seconds=seconds)


def _head(output: Node, bounders: dict[str, RememberingBounder]) -> Head | None:
    """The last linear map, if the network ends in one, with the bounds of everything before it."""
    if not isinstance(output.piece, Linear):
        return None
    before = output.inputs[0]
    body = {name: multiplied([row for _, _, row in bounder.rows(before)])[0] for name, bounder in bounders.items()}
    return Head(output.piece.map, body["l2"], body["linf"])


def _block_estimates(
    captured: Captured, pieces: list[Piece], steps: int, generator: torch.Generator | None
) -> list[float]:
    """For each row without a lower estimate the Jacobian norm at random points, 0 for the others."""
    wanted = [row.lower == 0 and row.kind not in ("linear", "activation") for _, _, row in pieces]
    return [
        _estimate(captured, entry, end, steps, generator) if missing else 0.0
        for missing, (entry, end, _) in zip(wanted, pieces, strict=True)
    ]


def _with_estimates(pieces: list[Piece], estimates: list[float]) -> tuple[BlockRow, ...]:
    """The rows under unique names with their estimates."""
    named = zip(pieces, unique_names(pieces), estimates, strict=True)
    rows = [with_lower(row, name, _checked(estimate, row.upper, name)) for (_, _, row), name, estimate in named]
    if pieces and isinstance(pieces[-1][1].piece, Linear):
        rows[-1] = replace(rows[-1], kind="head")
    return tuple(rows)


def _estimate(captured: Captured, entry: Node, end: Node, steps: int, generator: torch.Generator | None) -> float:
    """The largest Jacobian norm from `entry` to `end` at what random images lead to; 0 for no steps."""
    if steps == 0:
        return 0.0
    shape = (1 if captured.rebatches else BATCH, *captured.source.meta["val"].shape[1:])
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
