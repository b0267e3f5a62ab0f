"""Local radii of images: the number proved at given eps, the median radius, and CPU seconds per image.

    python benchmarks/local.py MODEL --data npy:FOLDER --norm linf [--eps 1/255,2/255] [--seconds 15] [--limit N]
                               [--first N] [--every N] [--aim 2/255] [--mean ... --std ...] [--dtype float32]
                               [--out local.csv]

    python benchmarks/local.py FILE.onnx --vnnlib FILE [FILE ...] [--seconds 60] [--out local.csv]

Only correctly classified images are counted. One thread. Seconds are CPU time of the search and of the proof. --aim:
decide these eps (proved or open) instead of computing the largest radius. --vnnlib: instances of the verification
competition; their seconds include the search and the proof but not the loading of the network.
"""

import argparse
import csv
import math
import sys
from fractions import Fraction
from pathlib import Path
from statistics import median
from time import thread_time

import torch

from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.output_property import excluded
from robustres.data import load_data
from robustres.evaluation.vnnlib import read_vnnlib
from robustres.models import load_model

SHAPE = (3, 32, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf")
    parser.add_argument("--eps", default="1/255,2/255")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--aim", default="")
    parser.add_argument("--vnnlib", type=Path, nargs="+")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--out", type=Path, default=Path("local.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.vnnlib:
        instances(given.model, given.vnnlib, given.seconds, given.out)
    else:
        images(given)


def instances(model: str, files: list[Path], seconds: float, out: Path) -> None:
    """Decide every instance: unsat if it is proved, else open."""
    module = load_model(model).module
    made = None
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["instance", "result", "seconds"])
        proved = 0
        for path in files:
            question = read_vnnlib(path)
            shape = SHAPE if question.inputs == math.prod(SHAPE) else (question.inputs,)
            made = made or local_program(module, shape)
            begun = thread_time()
            found = all(
                excluded(
                    made, part.region.reshape((1, *shape)), part.cases, deadline=begun + seconds, clock=thread_time
                )
                for part in question.parts
            )
            proved += found
            row = path.name.split(".")[0], "unsat" if found else "open", f"{thread_time() - begun:.1f}"
            writer.writerow(row)
            file.flush()
            print(*row, flush=True)
    print(f"{proved} of {len(files)} proved")


def images(given: argparse.Namespace) -> None:
    """Compute the radius of every correctly classified image."""
    mean, std = (tuple(map(float, text.split(","))) if text else None for text in (given.mean, given.std))
    model = load_model(given.model, mean=mean, std=std).module
    data = load_data(given.data)
    made = local_program(model, data.image_shape, runs=torch.float32 if given.dtype == "float32" else None)
    aims = [float(Fraction(text)) for text in given.aim.split(",") if text]
    rows: list[tuple[int, float, str, float, float]] = []
    with given.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "radius", "method", "search_seconds", "proof_seconds"])
        last = min(len(data), given.first + (given.limit or len(data)))
        for index in range(given.first, last, given.every):
            image = data.batch(torch.tensor([index]))
            if int(made.values(image.double())[-1].argmax()) != int(data.labels[index]):
                continue
            (found,) = local_radii(made, image, norm=given.norm, seconds=given.seconds, aims=aims)
            method = found.certificate.methods if found.certificate is not None else ""
            rows.append((index, found.radius, method, *found.seconds))
            writer.writerow(rows[-1])
            file.flush()
            print(*rows[-1], flush=True)
    if not rows:
        sys.exit("no image is classified correctly")
    print(f"{len(rows)} images, median radius {median(row[1] for row in rows):.5f} ({given.norm})")
    for text in given.eps.split(","):
        print(f"proved at {text}: {sum(row[1] >= float(Fraction(text)) for row in rows)}")
    search, proof = (sum(row[place] for row in rows) / len(rows) for place in (3, 4))
    print(f"CPU seconds per image: {search:.1f} search, {proof:.1f} proof")


if __name__ == "__main__":
    main()
