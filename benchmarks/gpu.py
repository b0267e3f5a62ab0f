"""All measurements that need a GPU in one run, which requires only the package and writes one JSON file.

Run: python benchmarks/gpu.py --minutes 10 --out runs/benchmarks/gpu.json
     python benchmarks/gpu.py --small --minutes 1     # the same on a tiny network, also without a GPU

Each part gets its share of the time and is skipped, with a reason, where it cannot run; the error of a part that fails
is recorded, and the next part begins. Weights and images are random (seed 0): speed and agreement are measured, not
robustness. The file is written after every part.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import robustres
from robustres.attacks import PGD, Ensemble
from robustres.certify import certify, lipschitz
from robustres.data import load_data
from robustres.models import residual_net
from robustres.threat import ThreatModel
from robustres.training import Recipe, train

EPS = 8 / 255


class Job:
    """The network, the images, the device and the time limit of one run."""

    def __init__(self, *, small: bool, minutes: float, device: torch.device) -> None:
        self.small, self.minutes, self.device = small, minutes, device
        torch.manual_seed(0)
        self.shape = (1, 8, 8) if small else (3, 32, 32)
        self.network = small_network() if small else cifar_resnet18()
        self.network.eval().to(device)
        self.images = torch.rand(16 if small else 512, *self.shape)
        with torch.no_grad():
            self.labels = self.network(self.images.to(device)).argmax(dim=1).cpu()
        self.steps = 5 if small else 50


def small_network() -> nn.Module:
    """A residual network small enough for a CPU."""
    return residual_net(block="residual", depth=1, width=4, image_shape=(1, 8, 8), classes=10)


def cifar_resnet18() -> nn.Module:
    """torchvision's ResNet-18 with the usual stem for 32 x 32 images."""
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def pgd(job: Job) -> dict[str, Any]:
    """Samples per second of PGD, in float32 and with the search in bfloat16, beside torchattacks and the bare loop."""
    x, y, found = job.images.to(job.device), job.labels.to(job.device), {}
    for precision in ("model", "bfloat16"):
        attack = PGD(
            ThreatModel("linf", EPS), steps=job.steps, schedule="cosine", precision=precision, batch_size=len(x)
        )  # type: ignore[arg-type]
        found[f"robustres, {precision}"] = rate(job, lambda attack=attack: attack(job.network, x, y))
    found["bare loop"] = rate(job, lambda: bare_loop(job.network, x, y, job.steps))
    try:
        import torchattacks
    except ImportError:
        found["torchattacks"] = "skipped: not installed"
    else:
        found["torchattacks"] = rate(job, lambda: torchattacks.PGD(job.network, eps=EPS, steps=job.steps)(x, y))
    return found


def bare_loop(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Textbook PGD: no checks, no early exit, no best iterate."""
    points = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_(True)
        gradient = torch.autograd.grad(nn.functional.cross_entropy(network(points), y), points)[0]
        points = (points.detach() + 2.5 * EPS / steps * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return points


def rate(job: Job, work: Callable[[], Any], *, most: int = 5) -> dict[str, float]:
    """Samples per second: the median of several runs after a warm-up run."""
    seconds = [clocked(job, work)[1] for _ in range(2 if job.small else most)][1:]
    middle = sorted(seconds)[len(seconds) // 2]
    return {"samples_per_second": len(job.images) / middle, "fastest": min(seconds), "slowest": max(seconds)}


def clocked(job: Job, work: Callable[[], Any]) -> tuple[Any, float]:
    """The return value of some work, and its wall-clock seconds including the device."""
    if job.device.type == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    result = work()
    if job.device.type == "cuda":
        torch.cuda.synchronize()
    return result, perf_counter() - start


def ensemble(job: Job) -> dict[str, Any]:
    """The standard ensemble on a subset of the images."""
    count = 8 if job.small else 128
    x, y = job.images[:count].to(job.device), job.labels[:count].to(job.device)
    attack = Ensemble(ThreatModel("linf", EPS), **({"steps": 3, "queries": 10} if job.small else {}))
    found, seconds = clocked(job, lambda: attack(job.network, x, y))
    return {"samples": count, "robust": int((~found.fooled).sum()), "seconds": seconds}


def bounds(job: Job) -> dict[str, Any]:
    """The bound of torchvision's ResNet-18 at 224 x 224, in float64."""
    if job.small:
        network, shape = small_network(), (1, 8, 8)
    else:
        torch.manual_seed(0)
        network, shape = torchvision.models.resnet18(), (3, 224, 224)
    network = network.eval().to(job.device)
    report, seconds = clocked(job, lambda: lipschitz(network, shape, joint=not job.small, lower_steps=0))
    return {"upper": report.upper, "seconds": seconds, "peak_bytes": peak(job)}


def local(job: Job) -> dict[str, Any]:
    """Linear bound propagation around one image."""
    found, seconds = clocked(
        job, lambda: certify(job.network, job.images[:1].to(job.device), norm="linf", certificate="local", seconds=2)
    )
    return {"radius": found.radius.tolist(), "seconds_per_image": seconds}


def training(job: Job) -> dict[str, Any]:
    """Certified training for about three tenths of the time: samples per second of the orthogonal network."""
    width = 8 if job.small else 24
    network = residual_net(
        block="orthogonal-convolution", depth=1 if job.small else 4, width=width, image_shape=job.shape, classes=10,
        activation="maxmin", stem_kernel=2, stem_stride=2,
    )  # fmt: skip
    count = 64 if job.small else 20_000
    data = load_data((torch.rand(count, *job.shape), torch.arange(count) % 10))
    recipe = Recipe(loss="emma", eps=36 / 255, epochs=1, batch_size=32 if job.small else 256)
    start, epochs, loss = perf_counter(), 0, 0.0
    while not epochs or (perf_counter() - start < 18 * job.minutes and not job.small):
        loss = (
            train(network, data, load_data((data.images[:64], data.labels[:64])), recipe, device=job.device)
            .epochs[-1]
            .loss
        )
        epochs += 1
    seconds = perf_counter() - start
    return {"samples_per_second": epochs * count / seconds, "epochs": epochs, "loss": loss, "seconds": seconds}


def out_of_memory(job: Job) -> dict[str, Any]:
    """Whether an attack recovers from a batch that does not fit into memory, with the result of a batch that fits."""
    if job.device.type != "cuda":
        return {"skipped": "no GPU whose memory could run out"}
    free = torch.cuda.mem_get_info()[0]
    count = min(200_000, free // (4 * 64 * 32 * 32 * 4))
    x, y = torch.rand(count, *job.shape), torch.zeros(count, dtype=torch.int64)
    attack = PGD(ThreatModel("linf", EPS), steps=1, batch_size=count)
    found, seconds = clocked(job, lambda: attack(job.network, x.to(job.device), y.to(job.device)))
    return {"samples": count, "fooled": int(found.fooled.sum()), "seconds": seconds, "peak_bytes": peak(job)}


def agreement(job: Job) -> dict[str, Any]:
    """Differences between the device and the CPU: logits, robust samples under PGD, the bound, radii."""
    count = 8 if job.small else 64
    there, here = job.network, pulled(job.network)
    x, y = job.images[:count], job.labels[:count]
    with torch.no_grad():
        logits = (there(x.to(job.device)).cpu() - here(x)).abs().max().item()
    attack = PGD(ThreatModel("linf", EPS), steps=5)
    places = ((there, job.device), (here, torch.device("cpu")))
    robust = [int((~attack(net, x.to(where), y.to(where)).fooled).sum()) for net, where in places]
    reports = [lipschitz(net, job.shape, joint=False, lower_steps=0) for net in (there, here)]
    radii = [
        certify(net, x[:4].to(where), report=report).radius.cpu()
        for (net, where), report in zip(places, reports, strict=True)
    ]
    return {
        "largest_difference_of_logits": logits,
        "robust_device_cpu": robust,
        "bound_device_cpu": [report.upper for report in reports],
        "largest_relative_difference_of_radii": ((radii[0] - radii[1]).abs() / radii[1].clamp_min(1e-30)).max().item(),
    }


def pulled(network: nn.Module) -> nn.Module:
    """A copy of the network on the CPU."""
    return copy.deepcopy(network).cpu()


def peak(job: Job) -> int | None:
    """Peak memory of the GPU so far, in bytes."""
    return torch.cuda.max_memory_allocated() if job.device.type == "cuda" else None


PARTS: tuple[Callable[[Job], dict[str, Any]], ...] = (agreement, pgd, bounds, local, training, ensemble, out_of_memory)


def run(job: Job, out: Path) -> dict[str, Any]:
    """Run all parts while there is time, writing the result of each as soon as it ends."""
    start = perf_counter()
    gpu = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else None
    result: dict[str, Any] = {
        "schema_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/gpu.py --minutes {job.minutes:g}" + (" --small" if job.small else ""),
        "device": str(job.device),
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "versions": {"robustres": robustres.__version__, "torch": torch.__version__, "cuda": torch.version.cuda},
        "parts": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if perf_counter() - start > 60 * job.minutes:
            found: dict[str, Any] = {"skipped": "the time is over"}
        else:
            try:
                found = part(job)
            except Exception as error:  # the other parts are still useful
                found = {"error": f"{type(error).__name__}: {error}"}
        result["parts"][part.__name__] = found
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{part.__name__}: {json.dumps(found)}", flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="no new part starts after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/gpu.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a tiny network, for a trial without a GPU")
    given = parser.parse_args(arguments)
    result = run(Job(small=given.small, minutes=given.minutes, device=torch.device(given.device)), given.out)
    return int(any("error" in part for part in result["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
