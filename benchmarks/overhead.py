"""The arithmetic of attacks in relation to the passes of the model.

    python benchmarks/overhead.py [--rounds 3] [--steps N] [--targets 3] [--attacks apgd-t,fab]
                                  [--networks resnet_2b,resnet18]

Everything that an attack does besides the model's forward and backward passes (losses, steps, projections, bookkeeping,
verification) is divided by these passes, in CPU seconds of one thread: the median, smallest and largest share over the
rounds. The networks are VNN-COMP 2021's resnet_2b, a very small one, with all images that it classifies correctly, at
an eps at which nearly all of them stay robust, and 100 steps; and a ResNet-18 for 32 x 32 with batch normalisation, of
a size that is attacked in practice, with random weights on 16 random images, and 5 steps.
"""

import argparse
import statistics
import time

import torch
import torchvision
from networks import SHARED, load
from torch import Tensor, nn

from robustres.attacks import Attack, make_attack
from robustres.threat import Norm, ThreatModel

BALLS: tuple[tuple[Norm, float], ...] = (("linf", 0.5 / 255), ("l2", 0.05), ("l1", 0.5))


class Timed(nn.Module):
    """A model that adds up the CPU seconds of its forward and backward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seconds, self.gradients, self._begun = model, 0.0, 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        start = time.process_time()
        logits: Tensor = self.model(x)
        self.seconds += time.process_time() - start
        if logits.requires_grad:
            self.gradients += len(x)
            logits.register_hook(self._begin)  # type: ignore[no-untyped-call]
            x.register_hook(self._end)  # type: ignore[no-untyped-call]
        return logits

    def _begin(self, gradient: Tensor) -> None:
        self._begun = time.process_time()

    def _end(self, gradient: Tensor) -> None:
        self.seconds += time.process_time() - self._begun


def resnet18() -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-18 for 32 x 32 with random weights, random images and the answers to them."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    x = torch.rand(16, 3, 32, 32)
    with torch.no_grad():
        return model, x, model.eval()(x).argmax(dim=1)


def measured(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> str:
    """The share of the attack's own arithmetic, and the time of the passes."""
    shares, milliseconds = [], []
    for _ in range(rounds):
        timed = Timed(model).eval()
        start = time.process_time()
        attack(timed, x, y)
        shares.append((time.process_time() - start) / timed.seconds - 1)
        milliseconds.append(1e3 * timed.seconds / timed.gradients)
    return (
        f"share {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})  "
        f"{statistics.median(milliseconds):.3f} ms per gradient of the model"
    )


NETWORKS = {"resnet_2b": (lambda: load(SHARED), 100), "resnet18": (resnet18, 5)}  # and the default number of steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every attack")
    parser.add_argument("--targets", type=int, default=3, help="classes that targeted attacks aim at")
    parser.add_argument("--attacks", default="apgd-t,fab")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in options.networks.split(","):
        read, steps = NETWORKS[network]
        model, x, y = read()
        model = model.eval().requires_grad_(False)
        with torch.no_grad():
            right = model(x).argmax(dim=1) == y
        for norm, eps in BALLS:
            for name in options.attacks.split(","):
                settings = {"steps": options.steps or steps}
                settings |= {"targets": options.targets} if name in ("apgd-t", "fab") else {}
                attack = make_attack(name, ThreatModel(norm, eps), **settings)
                print(f"{network:10} {name:8} {norm:5} {measured(attack, model, x[right], y[right], options.rounds)}")


if __name__ == "__main__":
    main()
