"""Bound the Lipschitz constant of a model block by block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robustres.arguments import require_kind, require_number
from robustres.at_hand import images_tensor
from robustres.certify.blocks.cost import step_cost
from robustres.certify.blocks.joint_bound import DEFAULT_EFFORT
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.bound_cache import BoundMemory, Known, network_key
from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.bounds.estimates import (
    CLIMBED_SAMPLES,
    CLOSE,
    Piece,
    block_estimates,
    climbed,
    estimate,
    start_images,
)
from robustres.certify.bounds.head import Head, before_log_softmax
from robustres.certify.bounds.pieces import Bounder, unique_names
from robustres.certify.bounds.report import PRODUCT, LipschitzReport, multiplied, with_lower
from robustres.certify.bounds.surroundings import Surroundings
from robustres.certify.bounds.unit_domain import on_unit_domain
from robustres.certify.bounds.whole_network import METHOD, WholeBound, WholeNetwork
from robustres.certify.graph.capture import Captured, device_of, refusing_what_fails, require_shape
from robustres.certify.graph.network import Linear, Node
from robustres.certify.graph.reading import read_network
from robustres.certify.graph.simplify import simplified
from robustres.certify.maps.linear_map import Shape
from robustres.certify.proof.bound import Guarantee
from robustres.errors import DefectiveBoundError, InputError, Refusal, UnsupportedOperationError
from robustres.numerics import require_certifiable_arithmetic

Norm = Literal["l2", "linf"]
CLIMB, MOST_CLIMBED = 0.5, 60  # share of the effort for estimates from images, and steps of the first climb
WHOLE = 4  # ratio of the effort for the whole network to that for a block
Domain = Literal["all", "unit"]
Refuse = Literal["raise", "record"]


def lipschitz(
    model: nn.Module,
    input_shape: Shape,
    *,
    norm: Norm = "l2",
    domain: Domain = "all",
    joint: bool = True,
    effort: float = DEFAULT_EFFORT,
    whole_effort: float | None = None,
    seconds: float | None = 2.0,
    delta: float | None = None,
    lower_steps: int = 8,
    refuse: Refuse = "raise",
    images: Tensor | None = None,
    generator: torch.Generator | None = None,
    store: BoundMemory | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LipschitzReport:
    """Bound the Lipschitz constant of a model's logits, in evaluation mode, over all inputs of one shape.

    Guaranteed: `report.upper` is at or above the constant of the model evaluated in exact arithmetic (deterministic
    unless `delta` is given); so is each row for its block. The lower ends are estimates and guarantee nothing.

    model: any module that maps (N, *input_shape) to (N, classes); it is copied to float64 and not modified.
    domain: "all" inputs, or "unit": images in [0, 1]^n only. On these, products of two values (squeeze and
        excitation) are bounded, and activations have only the slopes that they attain. The report states the domain;
        radii from it hold for the part of the ball in [0, 1]^n, to which the adversary is confined, and are 0 for
        images outside.
    joint: also bound residual blocks jointly, and the whole network by eliminating its layers; False computes the
        product of textbook bounds only, in a fraction of the time.
    effort: effort of each joint bound, in seconds of a nominal core; the same effort always gives the same bound.
    whole_effort: effort of the elimination of the whole network, by default four times `effort`;
        `report.whole` holds its result, or the reason why it was skipped and the effort it would require.
    seconds: approximate effort for each linear map, in seconds of a nominal core; None tries every torus.
    delta: failure probability of Lanczos iteration for the norm of each linear map, used where it is tighter;
        None allows only deterministic methods. Joint bounds are always deterministic. The probability is that of the
        iteration's random start.
    lower_steps: number of steps of the searches for the lower estimates; 0 omits them.
    images: (N, *input_shape) from which the lower estimates of network and blocks start; random by default.
    refuse: "raise" an UnsupportedOperationError that lists every operation without a rule, or "record" them in the
        report, whose `upper` is then infinite.
    generator: of all random starts; by default those of the searches are always the same, and those of `delta` are
        drawn anew.
    store: where bounds of the same network, settings and certifier are looked up and stored.
    progress: called with the number of pieces of the network that are bounded and the total number.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> report = lipschitz(model, (1, 2, 2))
    >>> [row.kind for row in report.blocks]
    ['linear', 'head']
    """
    _require_known(norm, domain, refuse)
    require_number("effort", effort)
    require_number("lower_steps", lower_steps, whole=True)
    for name, value in (("whole_effort", whole_effort), ("seconds", seconds), ("delta", delta)):
        require_number(name, value, optional=True)
    require_kind("generator", generator, torch.Generator)
    require_kind("store", store, BoundMemory)
    require_certifiable_arithmetic(device_of(model))
    start = perf_counter()
    input_shape = require_shape(input_shape)
    starts = start_images(_fitting(images, input_shape))
    settings: dict[str, Any] = {
        "norm": norm, "joint": joint, "effort": effort, "seconds": seconds, "delta": delta,
        "steps": lower_steps if norm == "l2" else 0, "device": device_of(model).type, "images": starts,
        "domain": domain, "whole": WHOLE * effort if whole_effort is None else whole_effort,
    }  # fmt: skip
    try:
        with refusing_what_fails("bounding it"):
            captured, network = read_network(model, input_shape, on_unit_domain=domain == "unit")
            if domain == "unit":
                network = on_unit_domain(network, captured)
            return _bounded(captured, network, settings, generator, store, progress, start)
    except UnsupportedOperationError as error:
        if refuse == "raise":
            raise
        return _refusal(input_shape, norm, error.refused, perf_counter() - start)


def _require_known(norm: str, domain: str, refuse: str) -> None:
    if norm not in ("l2", "linf"):
        raise InputError(f"norm must be l2 or linf, got {norm!r}")
    if domain not in get_args(Domain):
        raise InputError(f"domain must be all or unit, got {domain!r}")
    if refuse not in get_args(Refuse):
        raise InputError(f"refuse must be raise or record, got {refuse!r}")


def _bounded(
    captured: Captured,
    network: Node,
    settings: Mapping[str, Any],
    generator: torch.Generator | None,
    store: BoundMemory | None,
    progress: Callable[[int, int], None] | None,
    start: float,
) -> LipschitzReport:
    """Simplify, bound, estimate, report."""
    output = simplified(network)
    order = output.ordered()
    key = network_key(captured, order, settings) if store is not None and generator is None else None
    known = Known.from_text(store.load(key)) if store is not None and key is not None else Known()
    remembered = known.complete
    joint = {name: settings[name] for name in ("joint", "effort", "seconds", "delta")}
    bounders = {
        "l2": Bounder(order, watch=progress, known=known.rows["l2"], generator=generator, **joint),
        "linf": Bounder(order, norm="linf", joint=False, known=known.rows["linf"]),
    }
    with torch.no_grad():
        pieces = {name: bounder.rows(output) for name, bounder in bounders.items()}
        logits = before_log_softmax(output)
        head = _head(logits, bounders)
    product = {name: multiplied([row for _, _, row in found]) for name, found in pieces.items()}
    eliminated = WholeNetwork(output, effort=settings["whole"])
    _complete(known, captured, eliminated, pieces[settings["norm"]], settings, generator, product["l2"][0])
    pairs = eliminated if logits is output else WholeNetwork(logits, effort=settings["whole"])
    analysis = Analysis(captured, network, output, bounders["l2"], pairs, Surroundings(captured.module))
    report = _report(known, analysis, settings, pieces[settings["norm"]], product, head, perf_counter() - start)
    if store is not None and key is not None and not remembered:
        store.save(key, known.to_text())
    return report


def _complete(
    known: Known,
    captured: Captured,
    eliminated: WholeNetwork,
    pieces: Sequence[Piece],
    settings: Mapping[str, Any],
    generator: torch.Generator | None,
    product: float,
) -> None:
    """The estimates and the bound of the whole network, unless already known. product: that of the pieces, in l2."""
    norm, output = settings["norm"], eliminated.output
    if not known.complete:
        known.lower = _network_estimate(captured, output, settings, generator, product)
        known.block_lower = block_estimates(captured, pieces, settings["images"], settings["steps"], generator)
    if known.whole is None and settings["joint"]:
        known.whole = eliminated.bound(known=product, attained=known.lower if norm == "l2" else 0.0)
    elif known.whole is None:
        known.whole = WholeBound(skipped="joint bounds were not requested")
    if norm == "l2" and known.lower > known.whole.upper * (1 + CLOSE):  # repeat the search, now with pairs
        known.lower = _network_estimate(captured, output, settings, generator, known.whole.upper)


def _report(
    known: Known,
    analysis: Analysis,
    settings: Mapping[str, Any],
    pieces: list[Piece],
    product: Mapping[str, tuple[float, Guarantee]],
    head: Head | None,
    seconds: float,
) -> LipschitzReport:
    norm, whole = settings["norm"], known.whole
    assert whole is not None
    (upper, guarantee), method = product[norm], PRODUCT
    if norm == "l2" and whole.upper < upper:
        upper, guarantee, method = whole.upper, whole.guarantee, METHOD
    return LipschitzReport(
        input_shape=analysis.bounder.order[0].shape,
        norm=norm,
        blocks=_with_estimates(pieces, known.block_lower),
        upper=upper,
        lower=_checked(known.lower, upper, "the whole network"),
        l2_upper=min(product["l2"][0], whole.upper),
        linf_upper=product["linf"][0],
        product=product[norm][0],
        method=method,
        whole=whole,
        head=head,
        seconds=seconds,
        guarantee=guarantee,
        analysis=analysis,
        domain=settings["domain"],
    )


def _network_estimate(
    captured: Captured, output: Node, settings: Mapping[str, Any], generator: torch.Generator | None, upper: float
) -> float:
    """The lower estimate, with a climb if there are images to start from and the domain is unrestricted."""
    order, starts, steps = output.ordered(), settings["images"], settings["steps"]
    found = estimate(captured, order[0], output, starts, steps, generator, upper=upper)
    if starts is None or not steps or captured.on_unit_domain:
        return found
    climb = min(MOST_CLIMBED, int(CLIMB * settings["effort"] / step_cost(order, CLIMBED_SAMPLES)))
    higher = climbed(captured, order[0], output, starts, ascent_steps=climb, generator=generator, upper=upper)
    return max(found, higher)


def _fitting(given: Any, shape: Shape) -> Tensor | None:
    images = None if given is None else images_tensor(given)
    if images is not None and (tuple(images.shape[1:]) != shape or not len(images)):
        raise InputError(f"images must have the shape (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    return images


def _refusal(shape: Shape, norm: Norm, refused: tuple[Refusal, ...], seconds: float) -> LipschitzReport:
    return LipschitzReport(shape, norm, (), float("inf"), 0.0, refused, seconds=seconds)


def _head(output: Node, bounders: dict[str, Bounder]) -> Head | None:
    """The last linear map, if the network ends in one, with the bounds of everything before it."""
    if not isinstance(output.piece, Linear):
        return None
    before = output.inputs[0]
    body = {name: multiplied([row for _, _, row in bounder.rows(before)])[0] for name, bounder in bounders.items()}
    return Head(output.piece.map, body["l2"], body["linf"])


def _with_estimates(pieces: list[Piece], estimates: list[float]) -> tuple[BlockRow, ...]:
    """The rows under unique names with their estimates."""
    named = zip(pieces, unique_names(pieces), estimates, strict=True)
    rows = [with_lower(row, name, _checked(estimate, row.upper, name)) for (_, _, row), name, estimate in named]
    if pieces and rows[-1].kind == "linear":
        rows[-1] = replace(rows[-1], kind="head")
    return tuple(rows)


def _checked(estimate: float, upper: float, name: str) -> float:
    """The estimate, clipped at the bound if it exceeds it only by rounding; a larger estimate proves a defect."""
    if estimate > upper * (1 + CLOSE):
        raise DefectiveBoundError(
            f"{name}: the bound {upper:.17g} lies below the constant {estimate:.17g} that was attained; "
            "this is a defect of robustres: please report this model"
        )
    return min(estimate, upper)
