"""Runge-Kutta schemes as residual steps: forward and backward Euler, Heun, RK4; their stability and contractivity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustres.errors import InputError, ModelError

Field = Callable[[Tensor], Tensor]
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Scheme:
    """x + h sum_i b_i f(Y_i), Y_i = x + h sum_j a_ij f(Y_j): the Butcher tableau of one step.

    matrix: rows of a. weights: b. order: of accuracy.
    """

    name: str
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int

    @property
    def implicit(self) -> bool:
        """Whether an equation must be solved in every step."""
        return any(self.matrix[i][i] != 0 for i in range(len(self.weights)))

    def stability(self, z: np.ndarray) -> np.ndarray:
        """R(z), the factor of one step for x' = lambda x, with z = h lambda (complex array)."""
        a, b = np.array(self.matrix), np.array(self.weights)
        one = np.ones(len(b))
        return np.array(
            [1 + value * b @ np.linalg.solve(np.eye(len(b)) - value * a, one) for value in np.ravel(z)]
        ).reshape(np.shape(z))

    def contracts(self, step: float) -> bool:
        """Whether a step provably increases no distance between points, for fields f = -gradient of a convex function.

        step: h times the Lipschitz constant K of the gradient. With F_i, D_i the differences of f(Y_i) and Y_i, the
        squared distance changes by 2 h sum b_i <F_i, D_i> - h^2 sum m_ij <F_i, F_j>, m_ij = b_i a_ij + b_j a_ji - b_i
        b_j, and <F_i, D_i> <= -|F_i|^2 / K, so M + (2 / (h K)) diag(b) >= 0 suffices (Dahlquist and Jeltsch 1979).

        >>> FORWARD_EULER.contracts(1.99), FORWARD_EULER.contracts(2.01), BACKWARD_EULER.contracts(1e6)
        (True, False, True)
        """
        a, b = np.array(self.matrix), np.array(self.weights)
        scaled = b[:, None] * a
        form = scaled + scaled.T - np.outer(b, b) + 2 / step * np.diag(b)
        return bool(np.linalg.eigvalsh(form)[0] >= 1e-12)

    def upper(self, step: float) -> float:
        """A bound on the Lipschitz constant of a step for such a field: 1 if it contracts, else the bound by stages."""
        if self.contracts(step):
            return 1.0
        if self.implicit:
            return float("inf")
        stages: list[float] = []
        for row in self.matrix:
            stages.append(1 + step * sum(abs(value) * stage for value, stage in zip(row, stages, strict=False)))
        return (1 + step * sum(abs(weight) * stage for weight, stage in zip(self.weights, stages, strict=True))) * (
            1 + 2**-45
        )


FORWARD_EULER = Scheme("forward Euler", ((0.0,),), (1.0,), 1)
BACKWARD_EULER = Scheme("backward Euler", ((1.0,),), (1.0,), 1)
HEUN = Scheme("Heun", ((0.0, 0.0), (1.0, 0.0)), (0.5, 0.5), 2)
RK4 = Scheme(
    "RK4",
    ((0.0,) * 4, (0.5, 0.0, 0.0, 0.0), (0.0, 0.5, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    4,
)
SCHEMES = (FORWARD_EULER, BACKWARD_EULER, HEUN, RK4)


class Stepped(NamedTuple):
    """The state (N, D) after a step, and the residual (N,) of its equation (0 for explicit schemes)."""

    state: Tensor
    residual: Tensor


def advance(
    scheme: Scheme, field: Field, x: Tensor, h: float, *, slope: Callable[[Tensor], Tensor] | None = None
) -> Stepped:
    """One step of size h from x (N, D).

    slope: the Jacobians (N, D, D) of the field, required by the Newton iteration of the implicit scheme.
    """
    if scheme.implicit:
        if slope is None:
            raise InputError(f"{scheme.name} solves an equation and needs the field's Jacobian: give `slope`")
        return _backward(field, slope, x, h)
    stages: list[Tensor] = []
    for row in scheme.matrix:
        point = x
        for value, stage in zip(row, stages, strict=False):
            point = point + (h * value) * stage if value else point
        stages.append(field(point))
    total = x
    for weight, stage in zip(scheme.weights, stages, strict=True):
        total = total + (h * weight) * stage
    return Stepped(total, x.new_zeros(len(x)))


def _backward(field: Field, slope: Callable[[Tensor], Tensor], x: Tensor, h: float, *, rounds: int = 100) -> Stepped:
    """Solve y = x + h f(y) by Newton's method, halving every step until the residual decreases."""
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    y = x
    residual = y - x - h * field(y)
    size = torch.linalg.vector_norm(residual, dim=1)
    for _ in range(rounds):
        if bool((size <= TOLERANCE * (1 + torch.linalg.vector_norm(x, dim=1))).all()):
            return Stepped(y, size)
        direction = torch.linalg.solve(eye - h * slope(y), residual)
        share = torch.ones_like(size)
        for _ in range(30):
            trial = y - share[:, None] * direction
            trial_residual = trial - x - h * field(trial)
            trial_size = torch.linalg.vector_norm(trial_residual, dim=1)
            worse = (trial_size > size) & (size > 0)
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        y, residual, size = trial, trial_residual, trial_size
    raise ModelError(f"backward Euler did not converge at h = {h:g}: residual {float(size.max()):.3g}; lower h")
