"""How tight and how fast every bound is: norms by layer size, blocks beside the textbook bound.

    python benchmarks/bounds.py [--quick] [--out bounds.csv] [--device cuda]

Ratios are to the reference of each row: the exact zero-padded norm (dense decomposition) where it is affordable, else
the smallest bound at failure probability 1e-12. Estimates from below stand beside the bounds and are marked as such.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from robustres.certify.convolution import Convolution
from robustres.certify.exact_norm import dense_bound
from robustres.certify.joint import joint_bound
from robustres.certify.linear_map import Identity, LinearMap
from robustres.certify.power_iteration import power_iteration
from robustres.certify.spectral_norm import spectral_norm

EXACT_SIDE = 2500  # smaller side of an operator that is decomposed as the reference

# channels in, channels out, image side, stride
LAYERS = [(3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 16, 2), (32, 32, 8, 1), (64, 64, 4, 1), (64, 64, 56, 1)]
LAYERS += [(128, 128, 28, 1), (128, 256, 28, 2), (256, 256, 14, 1), (512, 512, 7, 1)]
BLOCKS = [(8, 16, 8, 1), (8, 16, 16, 2), (16, 16, 8, 1), (32, 32, 16, 1), (64, 64, 28, 1), (64, 128, 28, 2)]
QUICK = 6


@dataclass(frozen=True)
class Row:
    """One method on one layer or block. kind: "bound", "bound 1 - 1e-12" or "estimate from below"."""

    subject: str
    method: str
    kind: str
    value: float
    ratio: float
    seconds: float


def random_convolution(c_in: int, c_out: int, side: int, stride: int, seed: int, device: str) -> Convolution:
    """A 3x3 convolution with weights of the usual initialisation (He et al. 2015)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(c_out, c_in, 3, 3, generator=generator, dtype=torch.float64) * (2 / (9 * c_in)) ** 0.5
    return Convolution(weight.to(device), (c_in, side, side), stride, 1)


def timed(compute: Callable[[], float]) -> tuple[float, float]:
    """The value and its wall-clock seconds."""
    start = perf_counter()
    value = compute()
    return value, perf_counter() - start


def layer_rows(c_in: int, c_out: int, side: int, stride: int, device: str) -> Iterator[Row]:
    """Every method on one convolution."""
    layer = random_convolution(c_in, c_out, side, stride, 0, device)
    kernel = layer.weight
    methods: dict[str, tuple[str, Callable[[], float]]] = {
        "frequency": ("bound", lambda: spectral_norm(layer, method="frequency", lower_steps=0).upper),
        "frequency, Gram": ("bound", lambda: spectral_norm(layer, method="gram", lower_steps=0).upper),
        "auto": ("bound", lambda: spectral_norm(layer, lower_steps=0).upper),
        "Lanczos": ("bound 1 - 1e-12", lambda: spectral_norm(layer, method="lanczos", lower_steps=0).upper),
        "power": ("bound 1 - 1e-12", lambda: spectral_norm(layer, method="power", lower_steps=0).upper),
        "power, 100 steps": ("estimate from below", lambda: power_iteration(layer, steps=100).value),
        "reshaped kernel": ("estimate from below", lambda: float(torch.linalg.matrix_norm(kernel.flatten(1), 2))),
    }
    if c_in * c_out > 2**14:
        del methods["frequency, Gram"]
    results = {name: timed(compute) for name, (_, compute) in methods.items()}
    reference = min(value for name, (value, _) in results.items() if methods[name][0] != "estimate from below")
    if min(layer.in_size, layer.out_size) <= EXACT_SIDE:
        reference, seconds = timed(lambda: dense_bound(layer))
        results["dense"] = (reference, seconds)
        methods["dense"] = ("bound", lambda: reference)
    name = f"{c_in}->{c_out} {side}x{side} stride {stride}"
    for method, (value, seconds) in results.items():
        yield Row(name, method, methods[method][0], value, value / reference, seconds)


def block_rows(c_in: int, c_out: int, side: int, stride: int, device: str) -> Iterator[Row]:
    """Textbook, loop transformation and joint bound of one block, beside the free-slope estimate."""
    inner = random_convolution(c_in, c_out, side, stride, 1, device)
    outer = random_convolution(c_out, c_out, inner.out_shape[1], 1, 2, device)
    shortcut: LinearMap = Identity(inner.in_shape)
    if stride > 1 or c_in != c_out:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(c_out, c_in, 1, 1, generator=generator, dtype=torch.float64) * c_in**-0.5
        shortcut = Convolution(weight.to(device), inner.in_shape, stride)
    bound, seconds = None, 0.0
    start = perf_counter()
    bound = joint_bound(shortcut, inner, outer)
    seconds = perf_counter() - start
    name = f"block {c_in}->{c_out} {side}x{side} stride {stride}"
    for method, value in bound.candidates.items():
        yield Row(name, method, "bound", value, value / bound.lower, seconds)
    yield Row(name, "free slopes", "estimate from below", bound.lower, 1.0, seconds)


def main() -> None:
    """Print the table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the small sizes")
    parser.add_argument("--out", type=Path, default=Path("bounds.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    layers = LAYERS[: QUICK - 1] if options.quick else LAYERS
    blocks = BLOCKS[: QUICK // 2] if options.quick else BLOCKS
    rows: list[Row] = []
    print(f"{'subject':<28}{'method':<22}{'kind':<22}{'value':>10}{'ratio':>9}{'seconds':>9}")
    for make, sizes in ((layer_rows, layers), (block_rows, blocks)):
        for size in sizes:
            for row in make(*size, options.device):
                rows.append(row)
                print(
                    f"{row.subject:<28}{row.method:<22}{row.kind:<22}{row.value:>10.4f}{row.ratio:>9.4f}"
                    f"{row.seconds:>9.2f}",
                    flush=True,
                )
    exact = {row.subject for row in rows if row.method == "dense"}
    looseness = [row.ratio - 1 for row in rows if row.method == "frequency" and row.subject in exact]
    print(f"frequency bound over the exact zero-padded norm, median: {100 * statistics.median(looseness):.2f} %")
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(list(Row.__dataclass_fields__))
        writer.writerows([list(vars(row).values()) for row in rows])


if __name__ == "__main__":
    main()
