"""Orthogonal matrices optimised on their manifold instead of being computed from free matrices.

A Cayley map or a Cholesky factor costs more than the data, in the forward and the backward pass. Here the matrix itself
is the parameter: the Euclidean gradient is projected onto the tangent space, Adam's moments are those of the projected
entries, and the step is retracted by a polynomial; no system is solved and no gradient passes through a constraint
(section 7 of the mathematics).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.models.blocks.orthogonal import Factor, LiesOnManifold

REORTHOGONALISE = 10  # steps of a rotation between two Newton-Schulz steps
CONVERGES = 2.0  # |X X^T - I|_F below which a Newton-Schulz step on X converges: no singular value is over sqrt(3)
LAST_STEPS = 6  # Newton-Schulz steps after which nothing but rounding is left


@dataclass(frozen=True, eq=False)
class Point:
    """A parameter whose row ranges are orthogonal matrices or isometries."""

    parameter: nn.Parameter
    factors: tuple[Factor, ...]

    def matrices(self) -> Iterable[tuple[Factor, Tensor]]:
        """Each factor with its rows, a view of the parameter as a matrix."""
        matrix = self.parameter.detach().flatten(1)
        for factor in self.factors:
            yield factor, matrix[factor.rows]


def enter_manifold(model: nn.Module) -> list[Point]:
    """Make every orthogonal weight of the model a parameter itself; the function that the model computes is unchanged.

    The parametrisations stay in place and pass the matrices through, until `leave_manifold`.
    """
    points = []
    for step, entry in _constraints(model):
        if not step.on_manifold:
            with torch.no_grad():
                entry.original.copy_(step.to_manifold(entry.original))
            step.on_manifold = True
        points.append(Point(entry.original, step.factors(entry.original)))
    return points


def leave_manifold(model: nn.Module) -> None:
    """Settle the matrices on the manifold and let the parametrisations compute them again, with the same values."""
    for step, entry in _constraints(model):
        if step.on_manifold:
            step.on_manifold = False
            with torch.no_grad():
                retract(Point(entry.original, step.factors(entry.original)), LAST_STEPS)
                entry.original.copy_(step.from_manifold(entry.original))


def free_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they will be after leaving the manifold; the model itself is not changed."""
    apart = copy.deepcopy(model)
    leave_manifold(apart)
    return dict(apart.state_dict())


def _constraints(model: nn.Module) -> list[tuple[LiesOnManifold, Any]]:
    found: list[tuple[LiesOnManifold, Any]] = []
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for entry in module.parametrizations.values():  # type: ignore[operator]
                found += [(step, entry) for step in entry if isinstance(step, LiesOnManifold)]
    return found


def retract(point: Point, steps: int) -> None:
    """Newton-Schulz steps X <- 1.5 X - 0.5 X X^T X on every factor: the nearest orthogonal matrix, to second order."""
    for _, matrix in point.matrices():
        for _ in range(steps):
            matrix.copy_(_newton_schulz(matrix))


def _newton_schulz(matrix: Tensor) -> Tensor:
    if matrix.shape[0] <= matrix.shape[1]:
        return torch.addmm(matrix, matrix @ matrix.T, matrix, beta=1.5, alpha=-0.5)
    return torch.addmm(matrix, matrix, matrix.T @ matrix, beta=1.5, alpha=-0.5)


def _coarse(*matrices: Tensor) -> tuple[Tensor, ...]:
    """In bfloat16, whose products cost a third if the processor supports them."""
    return tuple(matrix.to(torch.bfloat16) for matrix in matrices)


class ManifoldAdam(torch.optim.Optimizer):
    """Adam on rotations and isometries.

    A rotation Q moves by Q <- Q (I + D + D^2 / 2), D the skew-symmetric step; an isometry S (orthonormal rows, or
    columns where it is tall) moves by S <- S + step and one Newton-Schulz step. The distance from the manifold is not
    guaranteed beyond what the last `retract` leaves; the certifier bounds the norm of the stored matrix.

    lr: per step of the normalised gradient. betas: of the two moments. adaptive: False leaves the second moment out
    (momentum alone, scaled by the root mean square of the whole factor). coarse: gradients and steps, which are small
    or noisy, are multiplied in bfloat16; the matrices and what keeps them on the manifold stay as they are.
    """

    def __init__(
        self,
        points: Iterable[Point],
        *,
        lr: float = 7e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        adaptive: bool = True,
        coarse: bool = False,
    ) -> None:
        self._points = list(points)
        self._coarse = coarse
        settings = {"lr": lr, "betas": betas, "eps": eps, "adaptive": adaptive}
        super().__init__([point.parameter for point in self._points], settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every factor that has a gradient."""
        assert closure is None, "a closure is not used here"
        settings = self.param_groups[0]
        for point in self._points:
            if point.parameter.grad is None:
                continue
            state = self.state[point.parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.int64)
                shape = point.parameter.flatten(1)
                state["first"], state["second"] = torch.zeros_like(shape), torch.zeros_like(shape)
            state["step"] += 1
            gradient = point.parameter.grad.flatten(1)
            for factor, matrix in point.matrices():
                moments = _Moments(state["first"][factor.rows], state["second"][factor.rows], int(state["step"]))
                move = _turn if factor.kind == "rotation" else _move
                move(matrix, gradient[factor.rows], moments, settings, coarse=self._coarse)


@dataclass(frozen=True, eq=False)
class _Moments:
    first: Tensor
    second: Tensor
    step: int

    def transposed(self) -> "_Moments":
        """Views of the same moments for the transposed matrix."""
        return _Moments(self.first.T, self.second.T, self.step)

    def direction(self, gradient: Tensor, settings: dict[str, Any]) -> Tensor:
        """The bias-corrected step of size about lr per entry, downhill."""
        slow, slower = settings["betas"]
        self.first.lerp_(gradient, 1 - slow)
        self.second.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
        mean = self.first / (1 - slow**self.step)
        square = self.second / (1 - slower**self.step)
        if not settings["adaptive"]:
            square = square.mean()
        step: Tensor = mean.div_(square.sqrt().add_(settings["eps"])).mul_(-settings["lr"])
        return step


def _turn(matrix: Tensor, gradient: Tensor, moments: _Moments, settings: dict[str, Any], *, coarse: bool) -> None:
    factor, slope = _coarse(matrix, gradient) if coarse else (matrix, gradient)
    tangent = (factor.T @ slope).to(matrix.dtype)
    # Skew-symmetric to the last bit, hence so are the moments and the step.
    step = moments.direction((tangent - tangent.T).mul_(0.5), settings)
    small = step.to(factor.dtype)
    turned = factor @ small
    twice = turned @ small
    # |D|^2 <= |D^2|_F: a step beyond norm 1, where the polynomial is no rotation any more, is brought back to it.
    size = twice.norm()
    shrink = torch.where(size < 1, 1.0, size.rsqrt())
    matrix.add_(turned.mul_(shrink)).add_(twice.mul_(shrink * shrink), alpha=0.5)
    if moments.step % REORTHOGONALISE == 0:
        matrix.copy_(_newton_schulz(matrix))


def _move(matrix: Tensor, gradient: Tensor, moments: _Moments, settings: dict[str, Any], *, coarse: bool) -> None:
    if matrix.shape[0] > matrix.shape[1]:
        matrix, gradient, moments = matrix.T, gradient.T, moments.transposed()
    factor, slope = _coarse(matrix, gradient) if coarse else (matrix, gradient)
    product = slope @ factor.T
    tangent = gradient.sub(((product + product.T) @ factor), alpha=0.5)
    step = moments.direction(tangent, settings)
    matrix.add_(step)
    defect = matrix @ matrix.T  # in full precision, as it must show deviations far below those of bfloat16
    defect.diagonal().sub_(1)
    # Of a tangent step D the defect is D D^T: a step that the correction below would not survive is cut to norm 1.
    size = defect.norm()
    shrink = torch.where(size < CONVERGES, 1.0, size.rsqrt())
    matrix.add_(step.mul_(shrink - 1))
    defect.mul_(shrink * shrink)
    now, defect = _coarse(matrix, defect) if coarse else (matrix, defect)
    matrix.sub_(defect @ now, alpha=0.5)
