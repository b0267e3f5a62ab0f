"""The strong ensemble beside the standard one, on networks of different kinds and with several seeds.

    python benchmarks/strong.py [--seeds 3] [--reference-seeds 1] [--only NAME] [--samples 10] [--folder runs/networks]
                                [--out runs/benchmarks/strong.csv]

Each case (networks.py) holds ten images (--samples) on which attacks may differ: their nearest known example lies
between 0.7 and 1.4 eps. There is one row per case and seed, with the samples that each attack leaves robust, the
samples that only one of them fools, CPU seconds and gradients. The standard ensemble has its published counts and is
run once per case and reference seed.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from networks import Case, Network, all_cases

from robustres.attacks import Attack, AttackResult, Ensemble, Strong


@dataclass(frozen=True)
class Row:
    """One seed on one case; the reference has the same seed, or its last one. gained, lost: samples fooled by `strong`
    only and by the standard ensemble only."""

    case: str
    tuned: bool
    seed: int
    samples: int
    reference: int
    strong: int
    gained: int
    lost: int
    reference_seconds: float
    strong_seconds: float
    reference_gradients: int
    strong_gradients: int


def timed(attack: Attack, net: Network) -> tuple[AttackResult, float]:
    """The result of the attack and its CPU seconds."""
    start = time.process_time()
    result = attack(net.model, net.x, net.y)
    return result, time.process_time() - start


def compare(case: Case, net: Network, seeds: int, reference_seeds: int) -> Iterator[Row]:
    """One row per seed."""
    for seed in range(seeds):
        if seed < reference_seeds:
            theirs, their_seconds = timed(Ensemble(case.threat, seed=seed), net)
        ours, seconds = timed(Strong(case.threat, seed=seed), net)
        yield Row(
            case.name,
            case.tuned,
            seed,
            len(net.x),
            theirs.robust,
            ours.robust,
            int((ours.fooled & ~theirs.fooled).sum()),
            int((theirs.fooled & ~ours.fooled).sum()),
            their_seconds,
            seconds,
            int(theirs.gradient_evaluations.sum()),
            int(ours.gradient_evaluations.sum()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reference-seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--samples", type=int, default=10, help="contested images per case, where there are so many")
    parser.add_argument("--folder", type=Path, default=Path("runs/networks"), help="of the networks trained here")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/strong.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        for case, net in all_cases(options.folder, only=options.only, samples=options.samples):
            for row in compare(case, net, options.seeds, max(options.reference_seeds, 1)):
                writer.writerow(astuple(row))
                file.flush()
                print(
                    f"{row.case:32} seed {row.seed}  {row.samples:3} samples  robust {row.reference:3} {row.strong:3}  "
                    f"seconds {row.reference_seconds:7.1f} {row.strong_seconds:6.1f}  "
                    f"ratio {row.strong_seconds / row.reference_seconds:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
