"""Local radii of a network's images: how many are proved at given eps, the median radius, and CPU seconds per image.

    python benchmarks/local.py MODEL --data npy:FOLDER --norm linf [--eps 1/255,2/255] [--seconds 15] [--limit N]
                               [--first N] [--mean ... --std ...] [--out local.csv]

Only images that are answered rightly are counted. One thread. Seconds are CPU time of the search and of the proof.
"""

import argparse
import csv
import sys
from fractions import Fraction
from pathlib import Path
from statistics import median

import torch

from robustres.certify.local.local_radii import local_program, local_radii
from robustres.data import load_data
from robustres.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf")
    parser.add_argument("--eps", default="1/255,2/255")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--out", type=Path, default=Path("local.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    mean, std = (tuple(map(float, text.split(","))) if text else None for text in (given.mean, given.std))
    model = load_model(given.model, mean=mean, std=std).module
    data = load_data(given.data)
    made = local_program(model, data.image_shape)
    rows: list[tuple[int, float, str, float, float]] = []
    with given.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "radius", "method", "search_seconds", "proof_seconds"])
        for index in range(given.first, min(len(data), given.first + (given.limit or len(data)))):
            image = data.batch(torch.tensor([index]))
            if int(made.values(image.double())[-1].argmax()) != int(data.labels[index]):
                continue
            (found,) = local_radii(made, image, norm=given.norm, seconds=given.seconds)
            method = found.certificate.methods if found.certificate is not None else ""
            rows.append((index, found.radius, method, *found.seconds))
            writer.writerow(rows[-1])
            file.flush()
            print(*rows[-1], flush=True)
    if not rows:
        sys.exit("no image is answered rightly")
    print(f"{len(rows)} images, median radius {median(row[1] for row in rows):.5f} ({given.norm})")
    for text in given.eps.split(","):
        print(f"proved at {text}: {sum(row[1] >= float(Fraction(text)) for row in rows)}")
    search, proof = (sum(row[place] for row in rows) / len(rows) for place in (3, 4))
    print(f"CPU seconds per image: {search:.1f} search, {proof:.1f} proof")


if __name__ == "__main__":
    main()
