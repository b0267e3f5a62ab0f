"""Which bound in the loss certifies most at equal size and equal CPU time: textbook, joint, whole, or by structure.

    python benchmarks/ablation.py [--data digits] [--seconds 12] [--seeds 5] [--out runs/benchmarks/ablation.csv]

Every block gets the same number of parameters, the same loss (EMMA at --eps) and the same CPU seconds of one thread;
the cost of an epoch is measured first and determines the number of epochs. The learning rate of each block is the one
of --learning-rates with the best certified accuracy on the validation split for the first seed. The figures are
certified by robustres.certify in float64 on test images that were used neither in training nor in this choice; they are
the mean and the standard deviation over the seeds.
"""

import argparse
import csv
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import torch

from robustres.certify import certify
from robustres.data import ImageSet, load_data
from robustres.models import build, materialise
from robustres.models.networks.residual_net import Architecture
from robustres.training import Recipe, train

BLOCKS = {  # name in the table: block, activation, number of blocks (half for two-layer blocks), bound
    "textbook": ("textbook", "relu", 2, "1 + |V| |W|"),
    "linear": ("linear", "maxmin", 4, "|I + W|"),
    "joint": ("joint", "relu", 2, "joint bound"),
    "ordinary": ("residual", "relu", 2, "product of norms"),
    "whole": ("residual", "relu", 2, "all layers at once"),
    "spectral": ("spectral", "relu", 2, "|V| = |W| = 1"),
    "CPL": ("cpl", "relu", 4, "|W| = 1"),
    "SLL": ("sll", "relu", 4, "rows of W W^T"),
    "orthogonal": ("orthogonal", "maxmin", 4, "orthogonal I + W"),
}


@dataclass(frozen=True)
class Row:
    """One trained network; certified, clean: shares of the test images."""

    block: str
    bound: str
    parameters: int
    learning_rate: float
    seed: int
    epochs: int
    cpu_seconds: float
    validation: float
    clean: float
    certified: float


def run(name: str, data: dict[str, ImageSet], recipe: Recipe, *, width: int, seconds: float, test: bool = True) -> Row:
    """Train one block for `seconds` of CPU time and certify it."""
    block, activation, depth, bound = BLOCKS[name]
    recipe = replace(recipe, bound="whole" if name == "whole" else "blocks")
    shape = data["train"].image_shape
    architecture = Architecture(
        block, depth, width, shape, data["train"].classes, kernel=1, activation=activation,  # type: ignore[arg-type]
        stem_kernel=shape[1], stem_stride=shape[1],
    )  # fmt: skip
    splits = data["train"], data["validation"]
    spent = []
    for epochs in (1, 3):
        start = process_time()
        train(build(architecture, seed=recipe.seed), *splits, replace(recipe, epochs=epochs))
        spent.append(process_time() - start)
    each = (spent[1] - spent[0]) / 2
    epochs = max(1, 1 + round((seconds - spent[0]) / each))  # the first epoch includes one-time costs
    network = build(architecture, seed=recipe.seed)
    start = process_time()
    history = train(network, *splits, replace(recipe, epochs=epochs))
    whole_time = process_time() - start
    best = history.epochs[history.best_epoch - 1]
    clean = certified = float("nan")
    if test:
        images, labels = data["test"].images, data["test"].labels
        found = certify(materialise(network), images)
        right = found.prediction == labels
        clean, certified = (float(part.double().mean()) for part in (right, right & (found.radius >= recipe.eps)))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    settings = recipe.learning_rate, recipe.seed, epochs, whole_time
    return Row(name, bound, parameters, *settings, best.certified, clean, certified)


def main() -> None:
    """Print the table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--blocks", default=",".join(BLOCKS))
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=12.0, help="CPU seconds of training for each network")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning-rates", default="3e-3,1e-2")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/ablation.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = {
        split: load_data(options.data, root=options.data_root, split=split) for split in ("train", "validation", "test")
    }  # type: ignore[arg-type]
    recipe = Recipe(loss="emma", eps=options.eps, batch_size=options.batch_size)
    limits = {"width": options.width, "seconds": options.seconds}
    rows: list[Row] = []
    heads = f"{'block':<12}{'bound':<18}{'parameters':>11}{'rate':>8}{'epochs':>8}{'CPU s':>7}"
    print(f"{heads}{'clean':>15}{'certified':>15}")
    for name in options.blocks.split(","):
        rates = [float(rate) for rate in options.learning_rates.split(",")]
        tried = [run(name, data, replace(recipe, learning_rate=rate), **limits, test=False) for rate in rates]
        rate = max(tried, key=lambda row: row.validation).learning_rate
        found = [
            run(name, data, replace(recipe, learning_rate=rate, seed=seed), **limits) for seed in range(options.seeds)
        ]
        rows += found
        spent, epochs = (statistics.mean(getattr(row, key) for row in found) for key in ("cpu_seconds", "epochs"))
        shares = "".join(
            f"{mean_and_spread([getattr(row, key) for row in found]):>15}" for key in ("clean", "certified")
        )
        first = found[0]
        print(
            f"{name:<12}{first.bound:<18}{first.parameters:>11,}{rate:>8g}{epochs:>8.0f}{spent:>7.1f}{shares}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(list(Row.__dataclass_fields__))
        writer.writerows([list(vars(row).values()) for row in rows])


def mean_and_spread(shares: list[float]) -> str:
    """Mean and standard deviation in per cent."""
    spread = statistics.stdev(shares) if len(shares) > 1 else float("nan")
    return f"{100 * statistics.mean(shares):.1f} +- {100 * spread:.1f} %"


if __name__ == "__main__":
    main()
