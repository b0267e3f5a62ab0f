"""Small networks of equal layers (plain, residual, scaled or highway), on which the claims are demonstrated."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.maps.linear_map import Dense, Identity, Scaled
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError
from robustres.guard import random_state_kept

Kind = Literal["plain", "residual", "highway"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class StackSettings:
    """kind: of every layer. depth: number of layers. width: of the state.

    alpha, beta: residual layers are alpha x + beta F(x) with F(x) = V relu(W x + b).
    inputs, classes: pixels of an image and number of logits.
    """

    kind: Kind = "residual"
    depth: int = 4
    width: int = 32
    alpha: float = 1.0
    beta: float = 1.0
    inputs: int = 64
    classes: int = 10

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.depth < 1 or self.width < 1:
            raise InputError(f"depth and width must be at least 1, got {self.depth} and {self.width}")


def norm_upper(weight: Tensor) -> float:
    """A bound on the largest singular value of a matrix."""
    return spectral_norm(Dense(weight.detach()), lower_steps=1).upper


class Layer(nn.Module):
    """One step of the state (N, width): F(x), alpha x + beta F(x), or t(x) F(x) + (1 - t(x)) x."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.kind, self.alpha, self.beta = settings.kind, settings.alpha, settings.beta
        self.inner = nn.Linear(settings.width, settings.width)
        self.outer = nn.Linear(settings.width, settings.width, bias=False)
        if settings.kind == "highway":
            self.gate = nn.Linear(settings.width, settings.width)
            nn.init.constant_(self.gate.bias, -1.0)  # initially carries (Srivastava, Greff and Schmidhuber 2015)

    def branch(self, x: Tensor) -> Tensor:
        """F(x) = V relu(W x + b)."""
        out: Tensor = self.outer(torch.relu(self.inner(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "plain":
            return self.branch(x)
        if self.kind == "residual":
            return self.alpha * x + self.beta * self.branch(x)
        gate = torch.sigmoid(self.gate(x))
        return gate * self.branch(x) + (1 - gate) * x

    def branch_upper(self) -> float:
        """A bound on the Lipschitz constant of F: the product of the two norms (the slopes of relu are at most 1)."""
        return math.prod(norm_upper(layer.weight) for layer in (self.inner, self.outer)) * (1 + 2**-50)

    def upper(self) -> float:
        """A bound on the Lipschitz constant of the layer; infinite for highway layers, which have none globally."""
        if self.kind == "plain":
            return self.branch_upper()
        if self.kind == "highway":
            return math.inf
        inner, outer = Dense(self.inner.weight.detach()), Dense(self.outer.weight.detach())
        shortcut = Scaled(self.alpha, Identity(inner.in_shape))
        return joint_bound(shortcut, inner, Scaled(self.beta, outer)).upper

    def limit_branch(self, limit: float) -> None:
        """Shrink both matrices in place to norms of at most sqrt(limit) each, so that K_F <= limit up to rounding."""
        with torch.no_grad():
            for layer in (self.inner, self.outer):
                layer.weight.mul_((limit**0.5 / torch.linalg.matrix_norm(layer.weight, 2)).clamp(max=1.0))


class Stack(nn.Module):
    """Images (N, ...) -> flatten -> stem -> equal layers -> linear head -> logits (N, classes)."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.settings = settings
        self.flatten = nn.Flatten()
        self.stem = nn.Linear(settings.inputs, settings.width)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.depth))
        self.head = nn.Linear(settings.width, settings.classes)

    def start(self, x: Tensor) -> Tensor:
        """The state before the first layer (N, width)."""
        out: Tensor = self.stem(self.flatten(x))
        return out

    def states(self, x: Tensor) -> list[Tensor]:
        """The states x_0 .. x_depth, each (N, width)."""
        return list(accumulate(self.layers, lambda state, layer: layer(state), initial=self.start(x)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.states(x)[-1])
        return logits


def stack(settings: StackSettings, *, seed: int = 0) -> Stack:
    """The network with PyTorch's default initialisation drawn from `seed`; the global random state is unchanged."""
    with random_state_kept():
        torch.manual_seed(seed)
        return Stack(settings)
