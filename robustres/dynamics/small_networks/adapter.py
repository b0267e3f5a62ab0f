"""Small corrections to a frozen network whose norm cannot exceed a budget."""

import torch
from torch import Tensor, nn

from robustres.dynamics.measures.schemes import advance
from robustres.dynamics.small_networks.flow import FlowNet


class Adapter(nn.Module):
    """x -> g(x) scaled so that its norm is at most `budget` for every x: g(x) = V tanh(U x + b), initially V = 0."""

    def __init__(self, size: int, hidden: int, budget: float) -> None:
        super().__init__()
        self.inner, self.outer, self.budget = nn.Linear(size, hidden), nn.Linear(hidden, size, bias=False), budget
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.inner(x)))
        size = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        bounded: Tensor = self.budget * out / size.clamp(min=1.0)
        return bounded


class Adapted(nn.Module):
    """A frozen flow with an adapter after every step, and a second head for the second task.

    budget: the largest distance by which all adapters together may move the last state, divided evenly over the steps
    if none of them expands. No later step enlarges a correction by more than its bound; `reach` sums the resulting
    bounds.
    """

    def __init__(self, base: FlowNet, classes: int, *, budget: float, hidden: int = 32) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        size, steps = base.head.in_features, base.steps * len(base.sections)
        self.adapters = nn.ModuleList(Adapter(size, hidden, budget / steps) for _ in range(steps))
        self.second = nn.Linear(size, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last state (N, D), the input of both heads."""
        state, adapters = x.flatten(1), iter(self.adapters)
        for section in self.base.sections:
            for _ in range(self.base.steps):
                state = advance(self.base.scheme, section, state, 1 / self.base.steps).state
                state = state + next(adapters)(state)
        return state

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the second task."""
        logits: Tensor = self.second(self.features(x))
        return logits

    def first(self, x: Tensor) -> Tensor:
        """Logits of the first task, from the frozen head."""
        logits: Tensor = self.base.head(self.features(x))
        return logits

    def reach(self) -> float:
        """A bound on the distance by which the adapters can move the last state, for every input."""
        moved = 0.0
        for upper, adapter in zip(self.base.step_uppers(), self.adapters, strict=True):
            assert isinstance(adapter, Adapter)
            moved = moved * upper + adapter.budget
        return moved * (1 + 1e-6)  # the scaling to the budget is done in single or double precision
