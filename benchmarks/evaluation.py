"""Where the time of an evaluation goes: passes of the network, bounds, and everything else.

    python benchmarks/evaluation.py --data-root DIR [--network convolutional] [--limit N] [--out evaluation.csv]
                                    [--profile]

DIR holds MNIST in torchvision's layout. A network is trained briefly and then evaluated on the test images as by
`robustres evaluate`. `convolutional`: three residual blocks of 32 channels on 7 x 7 positions, 60,000 parameters;
`dense`: the preset `orthogonal-mnist`, whose passes cost little more than a few passes over the 784 pixels. FGSM and
PGD with 20 steps at two budgets in linf, radii in two norms.

CPU seconds are counted for forward passes, backward passes, the bound of the network and the radii (float64 passes and
their rounding bounds), and for everything else: the attacks' own arithmetic, tables and files.
"""

import argparse
import cProfile
import csv
import pstats
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from robustres import evaluation
from robustres.certify import certify, lipschitz
from robustres.data import ImageSet, load_data
from robustres.evaluation import Settings, rows
from robustres.models import load_model, preset
from robustres.models.networks.residual_net import Architecture, build
from robustres.results import RunFolder

INSIDE, REST = ("forward", "backward", "bound", "radii"), "everything else"
SETTINGS = Settings(eps={"linf": (0.1, 0.3)}, attacks=("fgsm", "pgd"), attack_settings={"pgd": {"steps": 20}})


@dataclass
class Stopwatch:
    """CPU seconds by category; nested calls are counted in their own category and not in that of the caller."""

    spent: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: [REST])
    since: float = field(default_factory=process_time)

    def enter(self, name: str) -> None:
        """Count time from now on for `name`."""
        now = process_time()
        self.spent[self.names[-1]] = self.spent.get(self.names[-1], 0.0) + now - self.since
        self.names.append(name)
        self.since = now

    def leave(self) -> None:
        """Count time from now on for the previous category."""
        now = process_time()
        name = self.names.pop()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.since
        self.since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted under `name`."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            self.enter(name)
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave()

        return run

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Count the passes of modules of this type, the bounds, and the other parts."""
        with ExitStack() as patches:
            patches.enter_context(patch.object(type(module), "__call__", self.timed("forward", type(module).__call__)))
            for target, name, function in (
                ("torch.autograd.grad", "backward", torch.autograd.grad),
                ("torch.Tensor.backward", "backward", torch.Tensor.backward),
                ("robustres.evaluation.task.lipschitz", "bound", lipschitz),
                ("robustres.evaluation.rows.certify", "radii", certify),
                ("robustres.evaluation.rows._attack", "attacks' own arithmetic", rows._attack),
                ("robustres.evaluation.task.evaluated_part", "rows of tables", rows.evaluated_part),
                ("robustres.results.RunFolder.finish_part", "writing parts", RunFolder.finish_part),
                ("robustres.results.RunFolder.write_summary", "summary", RunFolder.write_summary),
            ):
                patches.enter_context(patch(target, self.timed(name, function)))
            yield


def network_called(name: str) -> nn.Module:
    """One of the two small networks with random weights."""
    if name == "dense":
        return preset("orthogonal-mnist")
    return build(Architecture("residual", 3, 32, (1, 28, 28), 10, stem_kernel=4, stem_stride=4), seed=0)


def trained(network: nn.Module, root: Path, steps: int = 300) -> nn.Module:
    """The network after a few steps of cross-entropy, accurate enough for attacks to be meaningful."""
    data = load_data("mnist", root=root, split="train")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        index = torch.randint(len(data), (256,), generator=generator)
        loss = nn.functional.cross_entropy(network(data.batch(index)), data.labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def measure(network: nn.Module, data: ImageSet, *, profile: bool) -> dict[str, float]:
    """CPU seconds of one evaluation, by category and in total."""
    model, watch = load_model(network, input_shape=data.image_shape), Stopwatch()
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        start = process_time()
        with watch.watching(model.module):
            run = profiler.runcall if profile else lambda function, *rest, **more: function(*rest, **more)
            run(evaluation.evaluate, model, data, Path(folder) / "run", SETTINGS, cache=False)
        whole = process_time() - start
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    inside = sum(watch.spent.get(name, 0.0) for name in INSIDE)
    return {**watch.spent, "outside passes and bounds": whole - inside, "whole": whole}


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data-root", type=Path, required=True)
    options.add_argument("--network", choices=("convolutional", "dense"), default="convolutional")
    options.add_argument("--limit", type=int)
    options.add_argument("--out", type=Path, default=Path("evaluation.csv"))
    options.add_argument("--profile", action="store_true", help="also print the most expensive functions")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist", root=chosen.data_root, limit=chosen.limit)
    network = trained(network_called(chosen.network), chosen.data_root)
    spent = measure(network, data, profile=chosen.profile)
    table = [(name, seconds, seconds / spent["whole"]) for name, seconds in spent.items()]
    for name, seconds, share in table:
        print(f"{name:<28}{seconds:>9.2f} s{100 * share:>8.1f} %")
    with chosen.out.open("w", newline="") as file:
        csv.writer(file).writerows([("what", "cpu_seconds", "share"), *table])


if __name__ == "__main__":
    main()
