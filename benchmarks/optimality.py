"""How close each minimum-norm attack (ours, torchattacks', foolbox's) comes to the best of all at equal cost.

    python benchmarks/optimality.py [--images 16] [--budget 100] [--networks resnet_2b,...] [--norms l2,linf,l1,l0]
                                    [--shared DIR] [--out optimality.csv]

The measure of AttackBench (Cinà et al. 2024), `robustres.attacks.optimality`: every attack gets the same number of
forward and backward evaluations per image, counted at the model, and the nearest example that it evaluates counts.
Attacks run image by image, so that each image has its own count. Networks: VNN-COMP 2021's resnet_2b on CIFAR-10
images, and the networks that `make demo` left in runs/demo, on digits; for each, the first images that it classifies
correctly.
"""

import argparse
import csv
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustres.attacks import make_attack, nearest_within, optimality
from robustres.data import load_data
from robustres.models import load_model
from robustres.threat import Norm, ThreatModel

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
OVERHEAD = 9  # evaluations besides the steps of our attacks: checking the model and verifying the result
Run = Callable[[nn.Module, Tensor, Tensor], object]
Network = tuple[nn.Module, Tensor, Tensor]


def networks(names: list[str], shared: Path, images: int) -> dict[str, Network]:
    """The networks by name, each with the first images that it classifies correctly."""
    found = {}
    for name in names:
        if name == "resnet_2b":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file = str(shared / "models" / "resnet_2b.onnx")
                model = load_model(file, mean=MEAN, std=STD, input_shape=(3, 32, 32)).module
            folder = shared / "data" / "cifar10-100"
            x = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float().div(255).contiguous()
            y = torch.from_numpy(np.load(folder / "labels.npy")).long()
        else:
            model = load_model(f"runs/demo/{name}/model.safetensors").module
            data = load_data("digits", limit=150)
            x, y = data.images, data.labels
        model = model.eval().requires_grad_(False)
        with torch.no_grad():
            right = (model(x).argmax(dim=1) == y).nonzero().flatten()[:images]
        found[name] = (model, x[right], y[right])
    return found


def ours(norm: Norm, budget: int) -> dict[str, Run]:
    """Our attacks by name; those that aim at one class after another divide the steps among three classes."""
    steps = (budget - OVERHEAD) // 2
    single = {"l2": ["ldn", "ddn", "fmn"], "linf": ["ldn", "fmn"], "l1": ["ldn", "fmn"], "l0": ["sigma-zero"]}[norm]
    several = {"l2": ["fab", "deepfool", "superdeepfool"], "l0": []}.get(norm, ["fab", "deepfool"])
    settings = {name: {"steps": steps} for name in single}
    settings |= {name: {"steps": (steps - 2) // 3, "targets": 3} for name in several}
    return {name: make_attack(name, ThreatModel(norm, math.inf), **given) for name, given in settings.items()}


def from_torchattacks(norm: Norm, budget: int) -> dict[str, Run]:
    """The minimum-norm attacks of torchattacks, with as many steps as the budget allows.

    JSMA is left out: each of its steps compares all pairs of pixel values, nine million for a CIFAR-10 image.
    """
    import torchattacks

    steps = budget // 2
    known: dict[str, dict[str, dict[str, Any]]] = {
        "l2": {"CW": {"steps": steps, "lr": 0.05}, "DeepFool": {"steps": steps}},
        "linf": {"FAB": {"norm": "Linf", "eps": 1.0, "steps": steps}},
        "l1": {"EADL1": {"max_iterations": steps, "binary_search_steps": 1, "initial_const": 1.0}},
        "l0": {"SparseFool": {"steps": steps}},
    }
    return {
        f"torchattacks {name}": lambda m, x, y, n=name, s=given: getattr(torchattacks, n)(m, **s)(x, y)
        for name, given in known[norm].items()
    }


def from_foolbox(norm: Norm, budget: int) -> dict[str, Run]:
    """The minimum-norm attacks of foolbox, with as many steps as the budget allows.

    A constant that weighs the loss against the distance is set to 1, since a search for it takes many times the budget.

    The Brendel-Bethge attacks are left out; they need numba and a start from another attack.
    """
    import foolbox

    steps = budget // 2
    known: dict[str, dict[str, dict[str, Any]]] = {
        "l2": {
            "DDNAttack": {"steps": steps},
            "L2FMNAttack": {"steps": steps},
            "L2DeepFoolAttack": {"steps": steps},
            "L2CarliniWagnerAttack": {"steps": steps, "binary_search_steps": 1, "initial_const": 1.0, "stepsize": 0.05},
        },
        "linf": {
            "LInfFMNAttack": {"steps": steps},
            "LinfDeepFoolAttack": {"steps": steps},
        },
        "l1": {
            "L1FMNAttack": {"steps": steps},
            "EADAttack": {"steps": steps, "binary_search_steps": 1, "initial_const": 1.0},
        },
        "l0": {"L0FMNAttack": {"steps": steps}},
    }

    def run(name: str, given: dict[str, Any]) -> Run:
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> object:
            wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
            return getattr(foolbox.attacks, name)(**given)(wrapped, x, y, epsilons=None)

        return attack

    return {f"foolbox {name}": run(name, given) for name, given in known[norm].items()}


def distances(attack: Run, network: Network, norm: Norm, budget: int) -> Tensor:
    """Distances of the nearest examples found; for an attack that fails, those found before the failure."""

    def guarded(model: nn.Module, x: Tensor, y: Tensor) -> None:
        try:
            attack(model, x, y)
        except (ValueError, AssertionError, IndexError, RuntimeError) as error:
            print(f"    failed on an image: {type(error).__name__}: {str(error)[:80]}", flush=True)

    model, x, y = network
    torch.manual_seed(0)
    np.random.seed(0)
    return nearest_within(guarded, model, x, y, norm=norm, budget=budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--budget", type=int, default=100, help="forward and backward evaluations per image, together")
    parser.add_argument("--networks", default="resnet_2b", help="resnet_2b, and names in runs/demo")
    parser.add_argument("--norms", default="l2,linf,l1,l0")
    default = os.environ.get("ROBUSTRES_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/optimality.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = networks(options.networks.split(","), options.shared, options.images)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["norm", "attack", "optimality", *(f"median on {name}" for name in chosen)])
        for norm in options.norms.split(","):
            attacks = ours(norm, options.budget)
            attacks |= from_torchattacks(norm, options.budget) | from_foolbox(norm, options.budget)
            found = {
                network: {name: distances(attack, given, norm, options.budget) for name, attack in attacks.items()}
                for network, given in chosen.items()
            }
            shares = optimality(list(found.values()))
            for name in sorted(shares, key=shares.__getitem__, reverse=True):
                medians = [float(found[network][name].quantile(0.5)) for network in chosen]
                print(f"{norm:5} {name:38} {shares[name]:.4f}  " + "  ".join(f"{m:.4f}" for m in medians), flush=True)
                writer.writerow([norm, name, shares[name], *medians])
                file.flush()


if __name__ == "__main__":
    main()
