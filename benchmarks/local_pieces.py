"""Local radii of small networks with gates, normalisation and attention, against the distance of the nearest example.

    python benchmarks/local_pieces.py [--images 6] [--seconds 4] [--epochs 15] [--kinds attention,...] [--norms linf,l2]

The networks are trained on the digits (8 x 8 pixels) as usual, not for robustness; seed 0. Only correctly classified
images are counted. One thread; seconds are CPU time of the search and the proof for each image.
"""

import argparse
import math
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustres.attacks import LDN
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.data.digits import digits
from robustres.threat import Norm, ThreatModel

WIDTH = 8


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, WIDTH), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.inner(x.mean((2, 3)))
        return x * gate[:, :, None, None]


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.inner(x)
        return answer


class Attention(nn.Module):
    """Every token attends to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) * WIDTH**-0.5).softmax(dim=2)
        answer: Tensor = self.last(weights @ value)
        return answer


class Tokens(nn.Module):
    """Patches of 2 x 2 pixels as tokens (N, 16, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(1, WIDTH, 2, 2), nn.Parameter(torch.zeros(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return answer


def convolutional(norm: Callable[[], nn.Module], end: Callable[[], nn.Module]) -> nn.Module:
    """A ResNet with two blocks."""

    def layer() -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(WIDTH, WIDTH, 3, padding=1), norm()

    blocks = [Residual(*layer(), nn.ReLU(), *layer(), end()) for _ in range(2)]
    first = nn.Conv2d(1, WIDTH, 3, 2, 1)
    return nn.Sequential(first, nn.ReLU(), *blocks, nn.ReLU(), nn.Flatten(), nn.Linear(16 * WIDTH, 10))


def of_tokens(mixing: Callable[[], nn.Module]) -> nn.Module:
    """One block of a transformer, before and after the mixing of tokens with layer normalisation."""
    inside = nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
    blocks = Residual(nn.LayerNorm(WIDTH), mixing()), Residual(nn.LayerNorm(WIDTH), *inside)
    return nn.Sequential(Tokens(), *blocks, nn.LayerNorm(WIDTH), nn.Flatten(), nn.Linear(16 * WIDTH, 10))


class Across(nn.Linear):
    """A linear layer over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "batch normalisation": lambda: convolutional(lambda: nn.BatchNorm2d(WIDTH), nn.Identity),
    "squeeze and excitation": lambda: convolutional(lambda: nn.BatchNorm2d(WIDTH), Gate),
    "group normalisation": lambda: convolutional(lambda: nn.GroupNorm(2, WIDTH), nn.Identity),
    "layer normalisation": lambda: of_tokens(lambda: Across(16, 16)),
    "attention": lambda: of_tokens(Attention),
}


def trained(model: nn.Module, epochs: int) -> nn.Module:
    """By cross-entropy and Adam."""
    data, generator = digits("train"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(data), generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.batch(indices)), data.labels[indices]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--norms", default="linf,l2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    test = digits("test")
    for kind in given.kinds.split(","):
        torch.manual_seed(0)
        model = trained(KINDS[kind](), given.epochs)
        with torch.no_grad():
            correct = model(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
        indices = correct.nonzero().flatten()[: given.images]
        x, y = test.batch(indices), test.labels[indices]
        made = local_program(model, (1, 8, 8))
        norm: Norm
        for norm in given.norms.split(","):
            distance = LDN(ThreatModel(norm, math.inf))(model, x, y).distance
            found = local_radii(made, x, norm=norm, seconds=given.seconds, above=distance * (1 + 1e-4))
            radii = [one.radius for one in found]
            shares = [radius / float(above) for radius, above in zip(radii, distance, strict=True)]
            seconds = [sum(one.seconds) / len(found) for one in found]
            print(
                f"| {kind} | {100 * float(correct.float().mean()):.1f} % | {norm} | {median(radii):.4f} | "
                f"{float(distance.median()):.4f} | {median(shares):.2f} | {max(shares):.2f} | {sum(seconds):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
