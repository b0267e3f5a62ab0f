"""A network that follows x' = -W^T tanh(W x + b) for a fixed time: the continuous view of residual blocks."""

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from robustres.certify.maps.linear_map import Dense
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.dynamics.measures.schemes import FORWARD_EULER, Scheme, advance
from robustres.errors import InputError
from robustres.guard import random_state_kept


class Section(nn.Module):
    """The field f(x) = -W^T tanh(W x + b): minus the gradient of a convex function; one-sided Lipschitz, mu <= 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = -torch.tanh(self.linear(x)) @ self.linear.weight
        return out

    def slope(self, x: Tensor) -> Tensor:
        """(N, D, D): -W^T diag(tanh') W, symmetric, eigenvalues in [-|W|^2, 0]."""
        derivative = 1 - torch.tanh(self.linear(x)) ** 2
        weight = self.linear.weight
        return -torch.einsum("ki,nk,kj->nij", weight, derivative, weight)

    def upper(self) -> float:
        """A bound on |W|^2, the Lipschitz constant of the field."""
        return spectral_norm(Dense(self.linear.weight.detach()), lower_steps=1).upper ** 2 * (1 + 2**-50)

    def limit(self, largest: float) -> None:
        """Shrink W in place so that |W|^2 <= largest, up to rounding."""
        with torch.no_grad():
            self.linear.weight.mul_(min(1.0, largest**0.5 / largest_singular_value(self.linear.weight)))


def largest_singular_value(weight: Tensor) -> float:
    """The spectral norm of a matrix: by SVD if it is small, else by ARPACK from a fixed start, up to rounding."""
    if min(weight.shape) <= 128:
        return float(torch.linalg.matrix_norm(weight, 2))
    matrix = weight.detach().double().numpy()
    return float(svds(matrix, k=1, return_singular_vectors=False, v0=np.ones(min(matrix.shape)))[0])


class FlowNet(nn.Module):
    """Pixels (N, ...) as the state, `sections` successive fields for time 1 each, and a linear head.

    scheme, steps: how each section is integrated, h = 1 / steps. Both may be changed at any time without affecting the
    parameters.
    """

    def __init__(
        self, pixels: int, classes: int, *, sections: int = 2, steps: int = 4, scheme: Scheme = FORWARD_EULER
    ) -> None:
        super().__init__()
        if steps < 1 or sections < 1:
            raise InputError(f"a flow needs at least 1 section and 1 step, got {sections} and {steps}")
        self.sections = nn.ModuleList(Section(pixels) for _ in range(sections))
        self.head = nn.Linear(pixels, classes)
        self.scheme, self.steps = scheme, steps

    def states(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """All states, including the first and the last, and the sum (N,) of the residuals of implicit steps."""
        states = [x.flatten(1)]
        owed = x.new_zeros(len(x))
        for section in self.sections:
            for _ in range(self.steps):
                done = advance(self.scheme, section, states[-1], 1 / self.steps, slope=section.slope)  # type: ignore[arg-type]
                states.append(done.state)
                owed = owed + done.residual
        return states, owed

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.states(x)[0][-1])
        return logits

    def step_uppers(self) -> list[float]:
        """A bound on the Lipschitz constant of every step, in order."""
        return [self.scheme.upper(section.upper() / self.steps) for section in self.sections for _ in range(self.steps)]  # type: ignore[operator]

    def limit(self, largest: float) -> None:
        """Keep |W|^2 of every section at most `largest`."""
        for section in self.sections:
            section.limit(largest)  # type: ignore[operator]


def flow_net(pixels: int, classes: int, *, sections: int = 2, steps: int = 4, seed: int = 0) -> FlowNet:
    """The network with random weights drawn from `seed`; the global random state is unchanged."""
    with random_state_kept():
        torch.manual_seed(seed)
        return FlowNet(pixels, classes, sections=sections, steps=steps)
