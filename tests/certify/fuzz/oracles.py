"""What must hold for any program: the captured graph is the program, no slope exceeds a bound, no certified ball holds
another answer, and nothing but robustres' own errors is raised.

A slope that seems to exceed its bound may be rounding of the program itself; it counts when it stays so after every
intermediate number is moved by far more than rounding moves it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify import Certificates, LipschitzReport, certify, lipschitz
from robustres.certify.radii.forward_rounding import Deviation
from robustres.errors import DefectiveBoundError, InputError, ModelError, PrecisionError, RobustresError
from tests.certify.fuzz.program import Program, Shape

ACCURACY = 1e-7  # accuracy of torch's derivatives: the 1/6 of hardsigmoid is a float32
JITTER = 1e-12
LEAST = 1e-280  # numbers below it are rounded to whole multiples of 5e-324


class FoundError(AssertionError):
    """A law does not hold; `law` names it."""

    def __init__(self, law: str, text: str) -> None:
        self.law = law
        super().__init__(f"{law}: {text}")


@dataclass
class Outcome:
    """The outcome of a program: refused, vacuous (an infinite bound) or bounded, and its ATen operations."""

    kind: str
    operations: set[str] = field(default_factory=set)
    tightness: float = 0.0


def check(program: Program, shape: Shape, seed: int = 0) -> Outcome:
    """Check every law for one program."""
    generator = torch.Generator().manual_seed(seed)
    try:
        report = lipschitz(program, shape, **settings_of(seed), refuse="record")
    except DefectiveBoundError as error:
        raise FoundError("defective", str(error)) from error
    except ModelError as error:
        return Outcome(f"not a model: {str(error)[:60]}")
    except Exception as error:  # including InputError: the input is valid
        raise FoundError("crash", f"lipschitz raised {type(error).__name__}: {error}") from error
    if report.refused:
        _check_refusals(report)
        return Outcome("refused")
    if math.isnan(report.upper):
        raise FoundError("nan", "the bound is not a number")
    x = points(shape, generator)
    try:
        rows = len(answers(program, x))
    except RuntimeError:
        rows = 0
    if rows != len(x):
        return Outcome("not a model: it runs on the captured batch alone")
    _check_graph(program, report, x)
    _check_certificates(program, report, x, generator)
    attained = _check_slopes(program, report, x, generator)
    operations = _operations(report)
    if math.isinf(report.upper):
        return Outcome("vacuous", operations)
    return Outcome("bounded", operations, attained / report.l2_upper if report.l2_upper > 0 else 1.0)


def _check_refusals(report: LipschitzReport) -> None:
    """An error of torch or Python that was turned into a refusal still counts as a crash."""
    for refusal in report.refused:
        if any(sign in str(refusal) for sign in ("that fails while robustres", "does not cover (", "please report")):
            raise FoundError("crash", f"refused: {refusal}")


def settings_of(seed: int) -> dict[str, object]:
    """Settings of `lipschitz` in turn, so that some programs use each method."""
    return {
        "effort": 0.02,
        "seconds": 0.05,
        "joint": seed % 5 != 4,
        "delta": 1e-6 if seed % 7 == 6 else None,
        "norm": "linf" if seed % 11 == 10 else "l2",
        "lower_steps": 2 if seed % 3 == 2 else 0,
    }


def points(shape: Shape, generator: torch.Generator) -> Tensor:
    """Inputs of many sizes, some of them all large and positive, or negative, which reach hidden parts of a network."""
    count = 48
    normal = torch.randn(count, math.prod(shape), dtype=torch.float64, generator=generator)
    sizes = 10 ** torch.linspace(-2, 2, count, dtype=torch.float64)
    shifts = torch.tensor([0.0, 0.0, 31.0, 40.0, -35.0, 3.0, 100.0, 0.0], dtype=torch.float64).repeat(count // 8)
    found = normal * sizes[:, None] + shifts[:, None]
    images = torch.rand(12, math.prod(shape), dtype=torch.float64, generator=generator)
    return torch.cat([found, images]).reshape(-1, *shape)


def answers(program: Program, x: Tensor) -> Tensor:
    """(B, classes) without gradients."""
    with torch.no_grad():
        return program.double()(x.clone())


def _check_graph(program: Program, report: LipschitzReport, x: Tensor) -> None:
    assert report.analysis is not None
    captured, wanted = report.analysis.captured, answers(program, x)
    with torch.no_grad():
        parts = [x] if captured.rebatches else x[: len(x) // 3 * 3].split(3)
        found = torch.cat([captured.run({captured.source: part}, captured.output) for part in parts])
    wanted = wanted[: len(found)]
    finite = torch.isfinite(wanted)
    scale = wanted.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
    away, allowed = (found - wanted).abs().nan_to_num(math.inf), 1e-9 * (1e-300 + scale)
    wrong = (away > allowed) & finite & (found != wanted)
    if bool(wrong.any()):  # the answer may be nothing but rounding, whose charge must then cover it
        wrong &= away > allowed + 2 * _charge(report, x)[: len(found), None]
    if bool(wrong.any()):
        raise FoundError("graph", "the captured graph gives different answers than the program")


def _charge(report: LipschitzReport, x: Tensor) -> Tensor:
    """(B,) what certificates charge for the rounding of the answers; 0 where they are refused."""
    assert report.analysis is not None
    try:
        _, sizes = report.analysis.measured(x, batch_size=len(x))
        return Deviation(report.analysis, sizes, torch.zeros(len(x), dtype=torch.float64), torch.float64).at_output()
    except PrecisionError:
        return torch.zeros(len(x), dtype=torch.float64)


def jacobians(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, classes, inputs)."""
    x = x.clone().requires_grad_(True)
    out = run(x)
    if not out.requires_grad:
        return torch.zeros(len(x), out.shape[1], x[0].numel(), dtype=torch.float64)
    rows = [
        torch.autograd.grad(out[:, k].sum(), x, retain_graph=True, allow_unused=True)[0] for k in range(out.shape[1])
    ]
    return torch.stack([(torch.zeros_like(x) if row is None else row).flatten(1) for row in rows], 1)


def lengths(x: Tensor, order: float) -> Tensor:
    """(B,) norms of the rows, even if their squares overflow."""
    size = x.abs().amax(1)
    return torch.linalg.vector_norm(x / torch.where(size > 0, size, 1.0)[:, None], order, dim=1) * size


def _norms(jacobian: Tensor) -> dict[str, Tensor]:
    """(B,) operator norms."""
    clean = torch.where(torch.isfinite(jacobian).all((1, 2), keepdim=True), jacobian, 0.0)
    size = clean.abs().amax((1, 2), keepdim=True)
    scaled = clean / torch.where(size > 0, size, 1.0)
    return {
        "l2": torch.linalg.matrix_norm(scaled, 2) * size.flatten(),
        "linf": scaled.abs().sum(2).amax(1) * size.flatten(),
    }


def _differentiable(program: Program, report: LipschitzReport, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The program, or the graph captured from it if torch cannot differentiate its in-place changes."""
    assert report.analysis is not None
    captured = report.analysis.captured
    try:
        jacobians(program.double(), x[:3])
    except RuntimeError:
        pass
    else:
        return program.double()

    def graph(v: Tensor) -> Tensor:
        return torch.cat([captured.run({captured.source: part}, captured.output) for part in v.split(3)])

    try:
        jacobians(graph, x[:3])
    except RuntimeError:  # only pairs are compared
        return lambda v: answers(program, v.detach())
    return graph


def _check_slopes(program: Program, report: LipschitzReport, x: Tensor, generator: torch.Generator) -> float:
    """Jacobians at many points and at steeper ones found from them, and ratios of pairs; the largest in l2."""
    run = _differentiable(program, report, x)
    steepest, best = x, 0.0
    bounds = {"l2": report.l2_upper, "linf": report.linf_upper}
    for size in (1.0, 0.3, 0.03):
        jacobian = jacobians(run, steepest)
        norms = _norms(jacobian)
        for norm, bound in bounds.items():
            over = norms[norm] > bound * (1 + ACCURACY) + LEAST
            if bool(over.any()) and _stays_over(program, steepest[over][:3], norm, bound):
                where = steepest[over][0].tolist()
                raise FoundError("slope", f"{norm}: {float(norms[norm].max()):.17g} > {bound:.17g} at {where}")
        _check_classes(report, jacobian)
        best = max(best, float(norms["l2"].max()))
        _check_pairs(program, report, bounds, steepest, jacobian, generator)
        top = steepest[norms["l2"].topk(6).indices].repeat(6, *[1] * (x.ndim - 1))
        noise = torch.randn(top.shape, dtype=torch.float64, generator=generator)
        steepest = top + size * noise * (0.01 + top.abs())
    return best


def _check_classes(report: LipschitzReport, jacobian: Tensor) -> None:
    """The bounds of the differences of two logits, where the whole network was bounded jointly."""
    assert report.analysis is not None
    bounds = report.analysis.whole.pairs  # those that `certify` has requested
    clean = torch.where(torch.isfinite(jacobian).all((1, 2), keepdim=True), jacobian, 0.0)
    slopes = (clean[:, :, None] - clean[:, None]).norm(dim=3).amax(0)
    for (i, j), bound in bounds.items():
        if float(slopes[i, j]) > bound * (1 + ACCURACY) + LEAST:
            raise FoundError("classes", f"{i}, {j}: {float(slopes[i, j]):.17g} > {bound:.17g}")


def _stays_over(program: Program, x: Tensor, norm: str, bound: float) -> bool:
    try:
        found = [_norms(jacobians(lambda v, k=k: jittered(program, v, k), x))[norm] for k in range(4)]  # type: ignore[misc]
    except RuntimeError:  # jitter that cannot be differentiated through
        return True
    spread = torch.stack(found).amax(0) - torch.stack(found).amin(0)
    return bool((torch.stack(found).amin(0) - 4 * spread > bound * (1 + ACCURACY) + LEAST).any())


def jittered(program: Program, x: Tensor, seed: int) -> Tensor:
    """The program with every intermediate number moved by a relative `JITTER`."""
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Tensor) -> Tensor:
        noise = torch.rand(value.shape, dtype=torch.float64, generator=generator)
        return value * (1 + JITTER * (2 * noise - 1))

    return program.double().observed(x, moved)


def _check_pairs(
    program: Program,
    report: LipschitzReport,
    bounds: dict[str, float],
    x: Tensor,
    jacobian: Tensor,
    generator: torch.Generator,
) -> None:
    flat = x.flatten(1)
    signs = jacobian.nan_to_num(0, 0, 0).sum(1).sign()
    steep = jacobian.nan_to_num(0, 0, 0).abs().amax(1)
    steep = steep / steep.amax(1, keepdim=True).clamp_min(1e-300)  # much shorter steps are dominated by rounding
    noise = torch.randn(flat.shape, dtype=torch.float64, generator=generator)
    steps = torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64)[torch.arange(len(flat)) % 3][:, None]
    axes = torch.eye(flat.shape[1], dtype=torch.float64)[torch.arange(len(flat)) % flat.shape[1]]
    here = answers(program, x)
    for direction in (noise, signs, steep, axes):
        other = flat + steps * direction * (0.01 + flat.abs().amax(1, keepdim=True))
        there = answers(program, other.reshape(x.shape))
        for norm, bound in bounds.items():
            order = 2 if norm == "l2" else math.inf
            length, change = lengths(other - flat, order), lengths(here - there, order)
            over = (change > bound * length * (1 + ACCURACY) + LEAST) & torch.isfinite(change)
            if not bool(over.any()):
                continue
            a, b = x[over], other.reshape(x.shape)[over]
            if _pair_stays_over(program, a, b, order, bound, _charge(report, a) + _charge(report, b)):
                pair = a[0].tolist(), b[0].tolist()
                raise FoundError(
                    "pair", f"{norm}: {float((change / length)[over].max()):.17g} > {bound:.17g} at {pair}"
                )


def _pair_stays_over(program: Program, a: Tensor, b: Tensor, order: float, bound: float, charge: Tensor) -> bool:
    length = lengths((b - a).flatten(1), order)
    with torch.no_grad():
        found = [jittered(program, a, k) - jittered(program, b, k + 9) for k in range(4)]
    changes = torch.stack([lengths(change, order) for change in found])
    spread = changes.amax(0) - changes.amin(0)
    return bool((changes.amin(0) - 4 * spread - charge > bound * length * (1 + ACCURACY) + LEAST).any())


def _check_certificates(program: Program, report: LipschitzReport, x: Tensor, generator: torch.Generator) -> None:
    """Check that no input inside a certified ball has another prediction."""
    chosen = torch.cat([x[-6:], x[torch.randperm(len(x), generator=generator)[:6]]])
    if answers(program, chosen[:1]).shape[1] < 2:
        return
    run = _differentiable(program, report, chosen)
    for norm, choice in (("l2", "lipschitz"), ("linf", "lipschitz"), ("l2", "best"), ("linf", "best")):
        try:
            found = certify(program, chosen, norm=norm, report=report, certificate=choice)  # type: ignore[arg-type]
        except DefectiveBoundError as error:
            raise FoundError("defective", str(error)) from error
        except RobustresError as error:
            if isinstance(error, InputError):
                raise FoundError("crash", f"certify {norm} {choice}: {error}") from error
            continue
        except Exception as error:
            raise FoundError("crash", f"certify {norm} {choice}: {type(error).__name__}: {error}") from error
        _search_balls(program, run, found, chosen, f"{norm} {choice}", generator)


def _search_balls(
    program: Program,
    run: Callable[[Tensor], Tensor],
    found: Certificates,
    x: Tensor,
    name: str,
    generator: torch.Generator,
) -> None:
    rows = torch.arange(len(x))
    size, linf = x[0].numel(), found.norm == "linf"
    if bool(torch.isnan(found.radius).any() | (found.radius < 0).any()):
        raise FoundError("radius", f"{name}: {found.radius.tolist()}")
    jacobian = jacobians(run, x).nan_to_num(0, 0, 0)
    slopes = jacobian - jacobian[rows, found.prediction][:, None]
    noise = torch.randn(len(x), 24, size, dtype=torch.float64, generator=generator)
    directions = torch.cat([slopes, noise, torch.ones(len(x), 1, size), -torch.ones(len(x), 1, size)], 1)
    units = directions.sign() if linf else torch.nn.functional.normalize(directions, dim=2)
    radius = found.radius.clamp_max(1e30)[:, None, None] * (1 - 1e-15)
    inside = (x.flatten(1)[:, None] + radius * units).reshape(-1, *x.shape[1:])
    there = answers(program, inside)
    same = there.argmax(1).reshape(len(x), -1) == found.prediction[:, None]
    counted = (found.radius > 0)[:, None] & torch.isfinite(there).all(1).reshape(len(x), -1)
    moved = (inside - x.repeat_interleave(directions.shape[1], 0)).flatten(1)
    order = math.inf if linf else 2
    within = lengths(moved, order).reshape(len(x), -1) <= found.radius[:, None]
    if bool((~same & counted & within).any()):
        row = int((~same & counted & within).any(1).nonzero()[0])
        raise FoundError(
            "ball", f"{name}: radius {float(found.radius[row])!r} at {x[row].tolist()} holds another answer"
        )


def _operations(report: LipschitzReport) -> set[str]:
    assert report.analysis is not None
    names = {str(node.target).removeprefix("aten.") for node in report.analysis.captured.nodes}
    return names | {name.rsplit(".", 1)[0] for name in names}
