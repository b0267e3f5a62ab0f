"""Error rates of the diagnosis of masked gradients: on deliberately masked networks, and on honest ones.

    python benchmarks/masking.py [--samples 24] [--folder runs/networks] [--out runs/benchmarks/masking.csv]

Every mask is applied to three networks for digits (see networks.py); the honest networks are these three and resnet_2b
without masks. A network is flagged if `diagnose` finds PGD on it suspicious, or if the attack refuses it. There is one
row per network and norm; the last lines are the two error rates, with 95 % Wilson intervals.
"""

import argparse
import csv
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from networks import SHARED, Altered, network
from torch import Tensor, nn

from robustres.attacks import PGD, diagnose
from robustres.errors import ModelError
from robustres.reports.wilson import wilson_interval
from robustres.threat import Norm, ThreatModel


class Saturated(nn.Module):
    """Log-probabilities with a floor: most logits are at the floor, where their gradient is zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.softmax(100 * self.model(x), dim=1) + 1e-6)


class Randomised(nn.Module):
    """Noise on the image, drawn again in every call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + 0.05 * torch.randn_like(x))
        return logits


def quantised(x: Tensor) -> Tensor:
    """16 levels: the gradient is zero everywhere."""
    return torch.round(x * 16) / 16


def detached(x: Tensor) -> Tensor:
    """A smoothing filter outside automatic differentiation."""
    return (
        nn.functional.avg_pool2d(nn.functional.pad(x.detach(), (1, 1, 1, 1), mode="replicate"), 3, 1) / 2
        + x.detach() / 2
    )


def stairs(x: Tensor) -> Tensor:
    """16 levels with steep, differentiable steps between: the gradient underflows nearly everywhere."""
    level = torch.floor(16 * x)
    return (level + torch.sigmoid(400 * (16 * x - level - 0.5))) / 16


def rippled(x: Tensor) -> Tensor:
    """Fine ripples: the gradient points the wrong way half of the time."""
    return x + 0.05 * torch.sin(100 * x)


MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "saturated logits": Saturated,
    "temperature 1/1000": partial(Altered, factor=1000),
    "quantised input": partial(Altered, before=quantised),
    "filter without gradient": partial(Altered, before=detached),
    "randomised": Randomised,
    "vanishing gradients": partial(Altered, before=stairs),
    "rippled input": partial(Altered, before=rippled),
}
BASES = ("plain", "residual", "adversarially trained")
BALLS: tuple[tuple[Norm, float], ...] = (("linf", 0.1), ("l2", 0.5))


@dataclass(frozen=True)
class Row:
    """One diagnosis. named: whether the network was flagged as masked; reasons: the checks that flagged it."""

    network: str
    mask: str
    norm: str
    eps: float
    named: bool
    reasons: str
    seconds: float


def row(
    name: str, mask: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, queries: int = 200
) -> Row:
    """Diagnose PGD on the samples that the network classifies correctly."""
    start = time.process_time()
    with torch.no_grad(), torch.random.fork_rng():
        right = model(x).argmax(dim=1) == y
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = diagnose(model, x[right], y[right], PGD(threat), queries=queries)
        reasons = [finding.check for finding in found.findings if finding.suspicious]
    except ModelError:
        reasons = ["refused"]
    seconds = time.process_time() - start
    return Row(name, mask, threat.norm, threat.eps, bool(reasons), " ".join(reasons), seconds)


def rows(folder: Path, samples: int) -> Iterator[Row]:
    """Honest networks, then masked ones."""
    for name in BASES:
        net = network(name, folder)
        x, y = net.x[:samples], net.y[:samples]
        for norm, eps in BALLS:
            yield row(name, "none", net.model, x, y, ThreatModel(norm, eps))
        for mask, masked in MASKS.items():
            for norm, eps in BALLS:
                yield row(name, mask, masked(net.model).eval(), x, y, ThreatModel(norm, eps))
    if (SHARED / "models").is_dir():
        net = network("resnet_2b", folder)
        for norm, eps in (("linf", 2 / 255), ("linf", 8 / 255), ("l2", 0.3)):
            yield row("resnet_2b", "none", net.model, net.x[:samples], net.y[:samples], ThreatModel(norm, eps))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("runs/networks"), help="of the networks trained here")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/masking.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        for one in rows(options.folder, options.samples):
            found.append(one)
            writer.writerow(astuple(one))
            file.flush()
            said = "named" if one.named else "not named"
            print(f"{one.network:22} {one.mask:24} {one.norm:4} {one.eps:<7.4g} {said:10} {one.reasons}", flush=True)
    for honest in (True, False):
        mine = [one for one in found if (one.mask == "none") == honest]
        wrong = sum(one.named == honest for one in mine)
        low, high = wilson_interval(wrong, len(mine))
        what = "honest networks flagged" if honest else "masked networks not flagged"
        print(f"{what}: {wrong} of {len(mine)}, 95 % interval {low:.0%} to {high:.0%}")


if __name__ == "__main__":
    main()
