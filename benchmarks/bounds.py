"""Tightness and speed of every bound: norms by layer size, blocks compared with the textbook bound, whole networks.

    python benchmarks/bounds.py [--quick] [--only layers,blocks,networks,published] [--out bounds.csv] [--device cuda]
                                [--resnet2b FILE.onnx] [--networks resnet18,resnet50] [--published FOLDER]

Ratios of layers are relative to the exact zero-padded norm (the whole matrix, decomposed or proved to 1e-4) if it is
affordable, else to the smallest available bound, including Lanczos at failure probability 1e-12; each row states which.
Ratios of blocks are relative to the best slopes found, those of networks to the smallest bound. Lower estimates are
listed beside the bounds and marked. Weights are random (seed 0) except for --resnet2b.
"""

import argparse
import csv
import importlib
import resource
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from torch import nn

from robustres.certify import LipschitzReport, lipschitz
from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.norms.power_iteration import power_iteration
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.norms.whole_gram import whole_gram_bound

EXACT_SECONDS = 5.0  # nominal time limit in seconds for the exact norm of a layer

# channels in, channels out, image side, stride
LAYERS = [(3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 16, 2), (32, 32, 8, 1), (64, 64, 4, 1), (16, 16, 7, 1)]
LAYERS += [(64, 64, 7, 1), (64, 64, 56, 1), (128, 128, 28, 1), (128, 256, 28, 2), (256, 256, 14, 1), (512, 512, 7, 1)]
LAYERS += [(512, 512, 4, 1)]
BLOCKS = [(8, 16, 8, 1), (8, 16, 16, 2), (16, 16, 8, 1), (32, 32, 16, 1), (64, 64, 28, 1), (64, 128, 28, 2)]
QUICK_LAYERS, QUICK_BLOCKS = 6, 3

# The stretch goals: CPU seconds (two minutes on two cores), GiB, seconds.
NETWORK_SECONDS, NETWORK_GIB, RESNET2B_SECONDS = 240.0, 8.0, 20.0
RESNET2B_BLOCKS = (4.15, 6.0)
# Pauli et al. (2024) with a commercial solver: bound of the l2 constant, seconds.
PUBLISHED = {
    "fc_r18": (20.956, 70.3),
    "chain_w64_d8": (0.156409, 5.1),
    "chain_w64_d16": (0.014631, 14.1),
    "chain_w64_d32": (2.33e-4, 96.0),
    "chain_w64_d64": (3.26e-4, 66.0),
    "cnn_C3_CH16": (8.0268, 1.6),
    "cnn_C5_CH16": (36.100, 4.3),
    "cnn_C9_CH16": (177.64, 4.7),
}
NOT_TIMED = (float("nan"), float("nan"))
BOUND, PROBABLE, ESTIMATE = "bound", "bound 1 - 1e-12", "estimate from below"


@dataclass(frozen=True)
class Row:
    """One method on one layer, block or network. reference: the denominator of `ratio`. cpu_seconds: of all threads."""

    part: str
    subject: str
    method: str
    kind: str
    value: float
    ratio: float
    reference: str
    seconds: float
    cpu_seconds: float
    peak_gib: float


@dataclass(frozen=True)
class Measured:
    """A value with its cost; peak memory is that of the process so far."""

    value: float
    seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, compute: Callable[[], float], device: str) -> "Measured":
        """Run it once."""
        start, cpu = perf_counter(), process_time()
        value = compute()
        if device != "cpu":
            torch.cuda.synchronize()
        return cls(value, perf_counter() - start, process_time() - cpu)

    def row(self, part: str, subject: str, method: str, kind: str, reference: tuple[float, str]) -> Row:
        """A row with the ratio to a reference."""
        ratio = self.value / reference[0]
        return Row(
            part, subject, method, kind, self.value, ratio, reference[1], self.seconds, self.cpu_seconds, peak_gib()
        )


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def random_convolution(c_in: int, c_out: int, side: int, stride: int, seed: int, device: str) -> Convolution:
    """A 3x3 convolution with weights of the usual initialisation (He et al. 2015)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(c_out, c_in, 3, 3, generator=generator, dtype=torch.float64) * (2 / (9 * c_in)) ** 0.5
    return Convolution(weight.to(device), (c_in, side, side), stride, 1)


def layer_rows(c_in: int, c_out: int, side: int, stride: int, device: str) -> Iterator[Row]:
    """Every method on one convolution."""
    layer = random_convolution(c_in, c_out, side, stride, 0, device)
    kernel = layer.weight
    methods: dict[str, tuple[str, Callable[[], float]]] = {
        "frequency": (BOUND, lambda: spectral_norm(layer, method="frequency", lower_steps=0).upper),
        "auto": (BOUND, lambda: spectral_norm(layer, lower_steps=0).upper),
        "Lanczos": (PROBABLE, lambda: spectral_norm(layer, method="lanczos", lower_steps=0).upper),
        "power, 100 steps": (ESTIMATE, lambda: power_iteration(layer, steps=100).value),
        "reshaped kernel": (ESTIMATE, lambda: float(torch.linalg.matrix_norm(kernel.flatten(1), 2))),
    }
    results = {name: Measured.of(compute, device) for name, (_, compute) in methods.items()}
    exact = Measured.of(lambda: exact_norm(layer), device)
    if exact.value < float("inf"):
        results["exact"], methods["exact"] = exact, (BOUND, lambda: exact.value)
        reference = exact.value, "exact"
    else:
        method = min((name for name in methods if methods[name][0] != ESTIMATE), key=lambda name: results[name].value)
        reference = results[method].value, f"smallest bound ({method})"
    for method, found in results.items():
        yield found.row("layer", f"{c_in}->{c_out} {side}x{side} s{stride}", method, methods[method][0], reference)


def exact_norm(layer: Convolution) -> float:
    """The zero-padded norm, proved to about 1e-4 or better; infinite if it takes too long."""
    if min(layer.in_size, layer.out_size) <= 768:
        return spectral_norm(layer, method="dense", lower_steps=0).upper
    found = whole_gram_bound(layer, seconds=EXACT_SECONDS)
    return float("inf") if found is None else found


def block_rows(c_in: int, c_out: int, side: int, stride: int, device: str) -> Iterator[Row]:
    """Textbook and joint bound of one block, and the free-slope estimate."""
    inner = random_convolution(c_in, c_out, side, stride, 1, device)
    outer = random_convolution(c_out, c_out, inner.out_shape[1], 1, 2, device)
    shortcut: LinearMap = Identity(inner.in_shape)
    if stride > 1 or c_in != c_out:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(c_out, c_in, 1, 1, generator=generator, dtype=torch.float64) * c_in**-0.5
        shortcut = Convolution(weight.to(device), inner.in_shape, stride)
    start, cpu = perf_counter(), process_time()
    bound = joint_bound(shortcut, inner, outer)
    took = perf_counter() - start, process_time() - cpu
    name = f"block {c_in}->{c_out} {side}x{side} s{stride}"
    for method, value in bound.candidates.items():
        yield Measured(value, *took).row("block", name, method, BOUND, (bound.lower, "free slopes"))
    yield Measured(bound.lower, *took).row("block", name, "free slopes", ESTIMATE, (bound.lower, "free slopes"))


def network_rows(name: str, model: nn.Module, shape: tuple[int, int, int], device: str) -> Iterator[Row]:
    """The default bound of a whole network, its blocks, and the product of the textbook bounds."""
    start, cpu = perf_counter(), process_time()
    report = lipschitz(model.to(device).eval(), shape)
    took = perf_counter() - start, process_time() - cpu
    smallest = report.upper, "default bound"
    yield Measured(report.upper, *took).row("network", name, "lipschitz", BOUND, smallest)
    textbook = report.upper
    for row in report.residual_blocks:
        textbook *= row.textbook / row.upper
    yield Measured(textbook, *took).row("network", name, "textbook", BOUND, smallest)
    yield Measured(report.lower, *took).row("network", name, "Jacobian", ESTIMATE, smallest)
    for row in report.residual_blocks:
        for method, value in row.candidates.items():
            found = Measured(value, row.seconds, float("nan"))
            yield found.row("network block", f"{name} {row.name}", method, BOUND, (row.lower, "free slopes"))


def networks(names: list[str], resnet2b: Path | None, device: str) -> Iterator[Row]:
    """torchvision's networks at 224x224 with random weights, and the network of the ONNX file."""
    if resnet2b is None or not resnet2b.is_file():
        print(f"resnet_2b skipped: {'no --resnet2b FILE.onnx was given' if resnet2b is None else f'no {resnet2b}'}")
    else:
        loading = importlib.import_module("robustres.models.sources.load_model")
        yield from network_rows("resnet_2b", loading.load_model(str(resnet2b)).module, (3, 32, 32), device)
    for name in names:
        torch.manual_seed(0)
        model = getattr(importlib.import_module("torchvision.models"), name)()
        yield from network_rows(name, model, (3, 224, 224), device)


class PublishedResidual(nn.Module):
    """fc_r18.npz: an input layer, blocks relu(x + W2 relu(W1 x)), a head."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        blocks = sum(name.endswith("fc1_weight") for name in weights)
        names = [(f"blocks_{k}_fc1", f"blocks_{k}_fc2") for k in range(blocks)]
        self.first, self.head = dense(weights["input_layer_weight"]), dense(weights["output_layer_weight"])
        self.inner = nn.ModuleList(dense(weights[f"{inner}_weight"]) for inner, _ in names)
        self.outer = nn.ModuleList(dense(weights[f"{outer}_weight"]) for _, outer in names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = torch.relu(x + outer(torch.relu(inner(x))))
        logits: torch.Tensor = self.head(x)
        return logits


def dense(weight: np.ndarray) -> nn.Linear:
    """A dense layer with these weights and no bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = torch.from_numpy(np.asarray(weight)).double()
    return layer


def published(folder: Path | None, device: str) -> Iterator[Row]:
    """The networks of Pauli et al. (2024) whose weights are in the folder: our default bound beside the published one.

    The convolutions: 28x28 images, zero padding 1, LeakyReLU(0.01), global mean, one dense layer, as in the files. The
    published figures belong to another setting, most likely the convolutions from 16 to 16 channels alone
    (docs/bounds.md).
    """
    if folder is None or not folder.is_dir():
        print("published networks skipped: no --published FOLDER was given")
        return
    loading = importlib.import_module("robustres.models.sources.load_model")
    for name, (value, seconds) in PUBLISHED.items():
        model: nn.Module
        if name == "fc_r18":
            weights = dict(np.load(folder / "fc_r18.npz"))
            model, shape = PublishedResidual(weights), (784,)
        elif name.startswith("chain"):
            weights = dict(np.load(folder / f"{name}.npz"))
            layers = [dense(weights[f"linear_{k}"]) for k in range(1, len(weights) + 1)]
            model = nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.ReLU(), layer)))
            shape = (64,)
        else:
            model, shape = loading.load_model(str(folder / f"{name}.onnx")).module, (1, 28, 28)
        model = model.to(device)
        reports: list[LipschitzReport] = []
        ours = Measured.of(partial(bound_of, model, shape, reports), device)
        reference = value, "published"
        (report,) = reports
        yield Measured(value, seconds, seconds).row("published", name, "published (SDP)", BOUND, reference)
        yield ours.row("published", name, f"lipschitz: {report.method}", BOUND, reference)
        yield Measured(report.product, *NOT_TIMED).row("published", name, "product", BOUND, reference)
        yield Measured(report.whole.reachable, *NOT_TIMED).row("published", name, "reachable", ESTIMATE, reference)
        starts = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
        attained = lipschitz(model, shape, joint=False, images=starts).lower
        yield Measured(attained, *NOT_TIMED).row("published", name, "attained", ESTIMATE, reference)


def bound_of(model: nn.Module, shape: tuple[int, ...], reports: list[LipschitzReport]) -> float:
    """The default bound; the report is appended to the list."""
    reports.append(lipschitz(model, shape))
    return reports[-1].upper


def summary(rows: list[Row]) -> Iterator[str]:
    """A summary of which goals are met."""
    for method in ("frequency", "auto"):
        found = [row for row in rows if row.part == "layer" and row.method == method]
        for exact in (True, False):
            loose = [100 * (row.ratio - 1) for row in found if exact == (row.reference == "exact")]
            if loose:
                said = "the exact norm" if exact else "the smallest bound"
                yield (
                    f"{method}: median {statistics.median(loose):.2f} %, largest {max(loose):.2f} % above {said} "
                    f"({len(loose)} layers)"
                )
    auto = [100 * (row.ratio - 1) for row in rows if row.part == "layer" and row.method == "auto"]
    if auto:
        yield verdict(
            statistics.median(auto) <= 2, "convolutions within 2 % in the median", f"{statistics.median(auto):.2f} %"
        )
    for row in rows:
        if row.part != "network" or row.method != "lipschitz":
            continue
        took = f"{row.seconds:.0f} s wall, {row.cpu_seconds:.0f} s CPU, {row.peak_gib:.1f} GiB"
        if row.subject == "resnet18":
            met = row.cpu_seconds <= NETWORK_SECONDS and row.peak_gib <= NETWORK_GIB
            yield verdict(met, "resnet18 at 224x224 in two minutes of two cores and 8 GiB", took)
        elif row.subject == "resnet_2b":
            blocks = joint_of_blocks(rows, "resnet_2b")
            met = row.cpu_seconds <= RESNET2B_SECONDS
            met = met and all(value <= goal for value, goal in zip(blocks, RESNET2B_BLOCKS, strict=True))
            said = ", ".join(f"{value:.3f}" for value in blocks)
            yield verdict(met, f"resnet_2b in {RESNET2B_SECONDS:.0f} s, blocks at most 4.15 and 6.0", f"{took}; {said}")
        else:
            yield f"{row.subject} at 224x224: {took}, bound {row.value:.4g}"


def joint_of_blocks(rows: list[Row], name: str) -> list[float]:
    """The joint bounds of a network's blocks, in order."""
    return [
        row.value
        for row in rows
        if row.part == "network block" and row.subject.startswith(name) and row.method.startswith("joint")
    ]


def verdict(met: bool, goal: str, figures: str) -> str:
    """A line with a goal, its figures and whether it is met."""
    return f"{'met' if met else 'NOT MET'}: {goal}: {figures}"


def all_rows(options: argparse.Namespace) -> Iterator[Row]:
    """All requested rows."""
    if "layers" in options.only:
        for size in LAYERS[:QUICK_LAYERS] if options.quick else LAYERS:
            yield from layer_rows(*size, options.device)
    if "blocks" in options.only:
        for size in BLOCKS[:QUICK_BLOCKS] if options.quick else BLOCKS:
            yield from block_rows(*size, options.device)
    if "networks" in options.only:
        yield from networks([] if options.quick else options.networks, options.resnet2b, options.device)
    if "published" in options.only:
        yield from published(options.published, options.device)


def main() -> None:
    """Print the table and write the CSV, row by row."""
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the small sizes, and no network except resnet_2b")
    parser.add_argument("--only", type=words, default=["layers", "blocks", "networks", "published"])
    parser.add_argument("--networks", type=words, default=["resnet18", "resnet50"], help="of torchvision")
    parser.add_argument("--resnet2b", type=Path, help="resnet_2b.onnx of VNN-COMP 2021")
    parser.add_argument("--published", type=Path, help="folder with fc_r18.npz, chain_w64_d*.npz, cnn_C*_CH16.onnx")
    parser.add_argument("--out", type=Path, default=Path("bounds.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    rows: list[Row] = []
    print(f"{'subject':<26}{'method':<20}{'kind':<21}{'value':>12}{'ratio':>9}{'seconds':>9}{'cpu':>8}{'GiB':>6}")
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in all_rows(options):
            rows.append(row)
            writer.writerow(asdict(row))
            file.flush()
            print(
                f"{row.subject:<26}{row.method:<20}{row.kind:<21}{row.value:>12.5g}{row.ratio:>9.4f}"
                f"{row.seconds:>9.2f}{row.cpu_seconds:>8.2f}{row.peak_gib:>6.1f}",
                flush=True,
            )
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
