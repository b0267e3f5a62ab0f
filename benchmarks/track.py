"""Measure bounds, verdicts, model calls and CPU seconds of a small fixed set as one JSON file, and compare two files.

Run: python benchmarks/track.py measure --out runs/benchmarks/now.json
     python benchmarks/track.py compare benchmarks/baseline.json runs/benchmarks/now.json

`compare` lists regressions beyond noise and, if there are any, exits with code 1. Bounds, radii, verdicts and calls are
deterministic on one processor, so small tolerances suffice; CPU seconds are compared with the spread of their
repetitions. For a baseline from another machine, whose seconds are not comparable, give --no-seconds.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

import robustres
from robustres.attacks import make_attack
from robustres.certify import certify, lipschitz, spectral_norm
from robustres.certify.maps.convolution import Convolution, both_sides, pair
from robustres.threat import ThreatModel

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Metric -> whether less is better, and the tolerated relative change.
METRICS: dict[str, tuple[bool, float]] = {
    "bound": (True, 1e-3),  # of a Lipschitz constant, from above
    "estimate": (False, 1e-2),  # lower estimate of the same constant
    "radius": (False, 1e-3),  # mean certified radius
    "robust": (True, 0.0),  # samples that survive an attack: fewer means a stronger attack
    "gradients": (True, 0.02),
    "calls": (True, 0.02),
    "seconds": (True, 0.25),
}


def convolutions() -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The norms of three random convolutions."""
    for inputs, outputs, side, stride in ((3, 16, 32, 1), (16, 32, 16, 2), (32, 32, 8, 1)):

        def norm(
            inputs: int = inputs, outputs: int = outputs, side: int = side, stride: int = stride
        ) -> dict[str, Any]:
            torch.manual_seed(0)
            weight = nn.Conv2d(inputs, outputs, 3).weight.detach()
            map_ = Convolution(weight, (inputs, side, side), pair(stride), both_sides((1, 1)), pair(1), 1, "zeros")
            return {"bound": spectral_norm(map_).upper}

        yield f"norm of a convolution {inputs} to {outputs}, {side} x {side}, stride {stride}", norm


def networks() -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Bounds and radii of the network in examples/."""
    model = robustres.load_model(str(EXAMPLES / "digits.onnx")).module
    images = robustres.load_data(f"npz:{EXAMPLES / 'digits.npz'}", limit=60).images

    def bounded(joint: bool) -> dict[str, float]:
        report = lipschitz(model, (1, 8, 8), joint=joint)
        found = certify(model, images, report=report)
        return {"bound": report.upper, "estimate": report.lower, "radius": found.radius.mean().item()}

    yield "digits.onnx, textbook bounds", lambda: bounded(False)
    yield "digits.onnx, joint bounds", lambda: bounded(True)

    def local() -> dict[str, float]:
        found = certify(model, images[:1], certificate="local", seconds=1)
        return {"radius": found.radius.mean().item()}

    yield "digits.onnx, local certificate of one image", local


def attacks() -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Robust samples among sixty digits under four attacks, and the number of model calls."""
    model = robustres.load_model(str(EXAMPLES / "digits.onnx")).module
    data = robustres.load_data(f"npz:{EXAMPLES / 'digits.npz'}", limit=60)
    for name, norm, eps in (("fgsm", "linf", 0.05), ("pgd", "linf", 0.05), ("pgd", "l2", 0.4), ("apgd", "l2", 0.4)):

        def left(name: str = name, norm: Any = norm, eps: float = eps) -> dict[str, float]:
            found = make_attack(name, ThreatModel(norm, eps))(model, data.images, data.labels)
            return {
                "robust": float((~found.fooled).sum()),
                "gradients": float(found.gradient_evaluations.sum()),
                "calls": float(found.evaluations.sum()),
            }

        yield f"{name}, {norm} {eps}", left


def measure(repeats: int, only: str = "") -> dict[str, Any]:
    """Every measurement whose name contains `only`, with median and spread of its seconds over the repetitions."""
    torch.set_num_threads(1)
    results = {}
    for group in (convolutions, networks, attacks):
        for name, work in group():
            if only not in name:
                continue
            seconds, values = [], {}
            for _ in range(repeats):
                start = process_time()
                values = work()
                seconds.append(process_time() - start)
            spread = (max(seconds) - min(seconds)) / max(statistics.median(seconds), 1e-9)
            results[name] = {**values, "seconds": statistics.median(seconds), "spread": spread}
    about = {"robustres": robustres.__version__, "torch": torch.__version__, "python": platform.python_version()}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "schema_version": 1,
        "created": when,
        "processor": platform.processor() or platform.machine(),
        "versions": about,
        "repeats": repeats,
        "results": results,
    }


def compared(old: dict[str, Any], new: dict[str, Any], *, seconds: bool = True) -> tuple[list[str], list[str]]:
    """Regressions and improvements beyond noise; a missing measurement counts as a regression."""
    worse, better = [], []
    for name, before in old["results"].items():
        after = new["results"].get(name)
        if after is None:
            worse.append(f"{name}: not measured any more")
            continue
        for metric, (less_is_better, allowed) in METRICS.items():
            if metric not in before or metric not in after or (metric == "seconds" and not seconds):
                continue
            if metric == "seconds":
                allowed = max(allowed, before.get("spread", 0), after.get("spread", 0))
            first, second = before[metric], after[metric]
            change = second - first if less_is_better else first - second
            line = f"{name}: {metric} {first:.6g} -> {second:.6g}"
            if change > allowed * abs(first) + (0.05 if metric == "seconds" else 0):
                worse.append(line)
            elif -change > allowed * abs(first) + (0.05 if metric == "seconds" else 0):
                better.append(line)
    return worse, better


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 if there is a regression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure and write one JSON file")
    measuring.add_argument("--out", type=Path, default=Path("runs/benchmarks/now.json"))
    measuring.add_argument("--repeats", type=int, default=3)
    measuring.add_argument("--only", default="", help="measurements whose name contains this")
    comparing = commands.add_parser("compare", help="list regressions beyond noise")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--no-seconds", action="store_true", help="for files from different machines")
    given = parser.parse_args(arguments)
    if given.command == "measure":
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(measure(given.repeats, given.only), indent=1) + "\n")
        print(f"written: {given.out}")
        return 0
    old, new = (json.loads(file.read_text()) for file in (given.old, given.new))
    worse, better = compared(old, new, seconds=not given.no_seconds)
    for title, lines in (("worse", worse), ("better", better)):
        for line in lines:
            print(f"{title}: {line}")
    print(f"{len(worse)} worse, {len(better)} better of {len(old['results'])} measurements")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
