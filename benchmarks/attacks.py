"""Cost and results of our attacks compared with torchattacks, foolbox and a bare loop.

    python benchmarks/attacks.py [--quick] [--rounds 3] [--shared DIR] [--out attacks.csv] [--device cpu]
                                 [--only pgd,norm,throughput,ensemble,schedules]

Candidates alternate in one process on one thread; CPU seconds are compared as ratios to the reference of each table,
with the median, smallest and largest over the rounds. Gradients are counted per sample by a wrapper around the model.
The network is VNN-COMP 2021's resnet_2b on 100 CIFAR-10 images, if the shared folder contains it.

`throughput` needs no files: a ResNet-18 for 32 x 32 with random weights on random images, in wall-clock seconds: 1,024
images and 50 steps with `--device cuda`, 16 images and 10 steps on a CPU.

`schedules`, only on request: the samples that PGD's schedules leave robust on networks that mislead attacks, with three
seeds each: resnet_2b, also with its logits times 100 (cross-entropy saturates) and after x + 0.02 sin 200 x (gradients
point in the wrong direction), and the networks that `make demo` left in runs/demo.
"""

import argparse
import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import torch
import torchattacks
import torchvision
from networks import Altered, load
from torch import Tensor, nn

from robustres.attacks import APGD, DDN, FMN, LDN, PGD, Ensemble
from robustres.attacks.methods.pgd import Schedule
from robustres.data import load_data
from robustres.models import load_model
from robustres.threat import Norm, ThreatModel

PIXEL_EPS = (2 / 255, 4 / 255, 8 / 255)


@dataclass(frozen=True)
class Row:
    """One candidate of one table. ratio: the reference's seconds divided by the candidate's; larger is faster."""

    table: str
    eps: float
    candidate: str
    found: str
    gradients: int
    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


class Counted(nn.Module):
    """The model with a count of the samples for which a gradient can be computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.gradients = model, 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients += len(x)
        logits: Tensor = self.model(x)
        return logits


Candidate = Callable[[nn.Module], str]
Clock = Callable[[], float]


def compare(
    table: str,
    eps: float,
    model: nn.Module,
    candidates: dict[str, Candidate],
    *,
    rounds: int,
    reference: str,
    clock: Clock = time.process_time,
) -> Iterator[Row]:
    """Run all candidates in turn, `rounds` times; ratios are relative to the reference in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    found, gradients = {}, {}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            counted = Counted(model).eval()
            start = clock()
            found[name] = candidate(counted)
            seconds[name].append(clock() - start)
            gradients[name] = counted.gradients
    for name, own in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[reference], own, strict=True)]
        yield Row(
            table,
            eps,
            name,
            found[name],
            gradients[name],
            statistics.median(own),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
        )


def left(model: nn.Module, examples: Tensor, y: Tensor) -> str:
    """How many samples are still classified correctly."""
    with torch.no_grad():
        return f"{int((model(examples).argmax(dim=1) == y).sum())} robust"


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The minimum: forward pass, input gradient, sign step and clamp, for all samples at every step."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    points = x.clone()
    for _ in range(steps):
        leaf = points.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        points = torch.clamp(leaf.detach() + 2.5 * eps / steps * gradient.sign(), low, high)
    return points


def foolbox_examples(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, eps: float | None, **settings: object
) -> Tensor:
    """foolbox's clipped examples."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    _, clipped, _ = getattr(foolbox.attacks, attack)(**settings)(wrapped, x, y, epsilons=eps)
    return clipped


def pgd_table(model: nn.Module, x: Tensor, y: Tensor, rounds: int, steps: int) -> Iterator[Row]:
    """Complete PGD at three eps, and the cost per step with all samples active."""
    for eps in PIXEL_EPS:
        alpha = 2.5 * eps / steps
        settings = {"eps": eps, "alpha": alpha, "steps": steps}
        linf = ThreatModel("linf", eps)
        candidates: dict[str, Candidate] = {
            "torchattacks": lambda m, s=settings: left(m, torchattacks.PGD(m, **s)(x, y), y),
            "bare loop": lambda m, e=eps: left(m, bare_loop(m, x, y, e, steps), y),
            "robustres": lambda m, t=linf: f"{PGD(t, steps=steps)(m, x, y).robust} robust",
            "robustres, cosine": lambda m, t=linf: f"{PGD(t, steps=steps, schedule='cosine')(m, x, y).robust} robust",
            "robustres, same steps": lambda m, t=linf: (
                f"{PGD(t, steps=steps, schedule='constant')(m, x, y).robust} robust"
            ),
            "foolbox": lambda m, e=eps, a=alpha: left(
                m, foolbox_examples(m, x, y, "LinfPGD", e, abs_stepsize=a, steps=steps), y
            ),
        }
        yield from compare(f"PGD-{steps}", eps, model, candidates, rounds=rounds, reference="torchattacks")
    with torch.no_grad():
        held = model(x).argmax(dim=1) == y
    tiny = ThreatModel("linf", 1e-5)
    x, y = x[held], y[held]
    candidates = {
        "bare loop": lambda m: left(m, bare_loop(m, x, y, 1e-5, steps), y),
        "robustres, all steps": lambda m: f"{PGD(tiny, steps=steps, schedule='cosine')(m, x, y).robust} robust",
    }
    yield from compare(f"PGD-{steps}, all active", 1e-5, model, candidates, rounds=rounds, reference="bare loop")


def published_ensemble(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, queries: int) -> str:
    """torchattacks' four attacks with the published counts (its AutoAttack class defaults to 10 iterations)."""
    shared = {"eps": eps, "norm": "Linf", "seed": 0, "n_restarts": 1}
    attacks = [
        torchattacks.APGD(model, loss="ce", steps=steps, **shared),
        torchattacks.APGDT(model, n_classes=10, steps=steps, **shared),
        torchattacks.FAB(model, n_classes=10, multi_targeted=True, steps=steps, **shared),
        torchattacks.Square(model, n_queries=queries, **shared),
    ]
    remaining = torch.arange(len(x))
    for attack in attacks:
        with torch.no_grad():
            remaining = remaining[model(x[remaining]).argmax(dim=1) == y[remaining]]
        if len(remaining):
            examples = attack(x[remaining], y[remaining])
            with torch.no_grad():
                remaining = remaining[model(examples).argmax(dim=1) == y[remaining]]
    return f"{len(remaining)} robust"


def ensemble_table(model: nn.Module, x: Tensor, y: Tensor, rounds: int, steps: int, queries: int) -> Iterator[Row]:
    """The standard ensemble as published, and ours with and without early stopping."""
    for eps in (2 / 255, 8 / 255):
        linf = ThreatModel("linf", eps)
        full = Ensemble(linf, steps=steps, queries=queries)
        early = Ensemble(linf, steps=steps, queries=queries, exhaustive=False)
        candidates: dict[str, Candidate] = {
            "torchattacks": lambda m, e=eps: published_ensemble(m, x, y, e, steps, queries),
            "robustres": lambda m, a=full: f"{a(m, x, y).robust} robust",
            "robustres, giving up": lambda m, a=early: f"{a(m, x, y).robust} robust",
        }
        table = f"ensemble {steps}/{queries}"
        yield from compare(table, eps, model, candidates, rounds=rounds, reference="torchattacks")
        single: dict[str, Candidate] = {"APGD-CE": lambda m, t=linf: f"{APGD(t, steps=steps)(m, x, y).robust} robust"}
        yield from compare("APGD alone", eps, model, single, rounds=1, reference="APGD-CE")


def norm_table(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> Iterator[Row]:
    """Median distances of minimum-norm attacks in l2, with at most 46 gradients per image (one of ours is a check)."""
    with torch.no_grad():
        held = model(x).argmax(dim=1) == y
    x, y = x[held], y[held]
    unbounded = ThreatModel("l2", math.inf)

    def median(model: nn.Module, examples: Tensor) -> str:
        with torch.no_grad():
            missed = model(examples).argmax(dim=1) == y
        lengths = (examples - x).flatten(1).double().norm(dim=1).masked_fill(missed, math.inf)
        return f"median l2 {float(lengths.quantile(0.5)):.4f}"

    candidates: dict[str, Candidate] = {
        "foolbox DDN": lambda m: median(m, foolbox_examples(m, x, y, "DDNAttack", None, steps=46)),
        "foolbox FMN": lambda m: median(m, foolbox_examples(m, x, y, "L2FMNAttack", None, steps=46)),
        "robustres DDN": lambda m: median(m, DDN(unbounded, steps=45)(m, x, y).examples),
        "robustres FMN": lambda m: median(m, FMN(unbounded, steps=45)(m, x, y).examples),
        "robustres LDN": lambda m: median(m, LDN(unbounded, steps=45)(m, x, y).examples),
    }
    yield from compare("minimum l2", math.inf, model, candidates, rounds=rounds, reference="foolbox DDN")


Balls = tuple[tuple[Norm, float], ...]
PIXEL_BALLS: Balls = (*(("linf", eps) for eps in PIXEL_EPS), ("l2", 0.2), ("l2", 0.5), ("l1", 6.0))
DIGIT_BALLS: Balls = (("linf", 0.06), ("linf", 0.1), ("linf", 0.15), ("l2", 0.3), ("l2", 0.6))


def misleading(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[str, nn.Module, Tensor, Tensor, Balls]]:
    """Networks by name, with images, labels and balls."""
    yield "resnet_2b", model, x, y, PIXEL_BALLS
    yield "resnet_2b times 100", Altered(model, factor=100), x, y, (PIXEL_BALLS[0], PIXEL_BALLS[2])
    rippled = Altered(model, before=lambda image: image + 0.02 * torch.sin(200 * image))
    yield "resnet_2b rippled", rippled, x, y, (PIXEL_BALLS[1], PIXEL_BALLS[4])
    digits = load_data("digits", limit=150)
    for file in sorted(Path("runs/demo").glob("*/model.safetensors")):
        yield file.parent.name, load_model(str(file)).module, digits.images, digits.labels, DIGIT_BALLS


def schedules_table(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Iterator[Row]:
    """Robust samples under each schedule, over all seeds; the last rows are the totals."""

    def left_by(schedule: Schedule, threat: ThreatModel, x: Tensor, y: Tensor) -> Candidate:
        attacks = [PGD(threat, steps=steps, schedule=schedule, seed=seed) for seed in range(3)]
        return lambda m: f"{sum(attack(m, x, y).robust for attack in attacks)} robust"

    rows: list[Row] = []
    schedules: tuple[Schedule, ...] = ("constant", "cosine", "adaptive")
    for name, network, images, labels, balls in misleading(model, x, y):
        network.requires_grad_(False)
        for norm, eps in balls:
            candidates = {s: left_by(s, ThreatModel(norm, eps), images, labels) for s in schedules}
            found = list(compare(f"{name} {norm}", eps, network, candidates, rounds=1, reference="constant"))
            rows += found
            yield from found
    seconds = {s: sum(row.seconds for row in rows if row.candidate == s) for s in schedules}
    for schedule in schedules:
        own = [row for row in rows if row.candidate == schedule]
        robust, gradients = sum(int(row.found.split()[0]) for row in own), sum(row.gradients for row in own)
        ratio = seconds["constant"] / seconds[schedule]
        yield Row("all", math.nan, schedule, f"{robust} robust", gradients, seconds[schedule], ratio, ratio, ratio)


def resnet18(device: torch.device) -> nn.Module:
    """torchvision's ResNet-18 for 32 x 32: first convolution 3 x 3, no pooling; random weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.eval().requires_grad_(False).to(device)


def throughput_table(device: torch.device, rounds: int, samples: int, steps: int) -> Iterator[Row]:
    """Samples per second of complete attacks; at the tiny eps no sample is fooled, so all stay active to the end."""
    model = resnet18(device)
    x = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(dim=1) for part in x.split(256)])

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def rate(run: Callable[[nn.Module], object]) -> Candidate:
        def candidate(model: nn.Module) -> str:
            start = clock()
            run(model)
            return f"{samples / (clock() - start):.1f} samples/s"

        return candidate

    for eps in (1e-5, 8 / 255):
        alpha = 2.5 * eps / steps
        ours = PGD(ThreatModel("linf", eps), steps=steps, schedule="cosine", batch_size=1024)
        candidates = {
            "bare loop": rate(lambda m, e=eps: bare_loop(m, x, y, e, steps)),
            "torchattacks": rate(lambda m, e=eps, a=alpha: torchattacks.PGD(m, eps=e, alpha=a, steps=steps)(x, y)),
            "robustres": rate(lambda m, attack=ours: attack(m, x, y)),
        }
        if device.type == "cuda":  # emulated on CPUs and thirty times slower
            half = replace(ours, precision="bfloat16")
            candidates["robustres, bfloat16"] = rate(lambda m, attack=half: attack(m, x, y))
        table = f"ResNet-18 PGD-{steps} {device.type}"
        yield from compare(table, eps, model, candidates, rounds=rounds, reference="torchattacks", clock=clock)


def show(row: Row) -> None:
    print(
        f"{row.table:22} eps {row.eps:8.5f}  {row.candidate:22} {row.found:18} {row.gradients:8d} gradients "
        f"{row.seconds:8.2f} s  ratio {row.ratio:5.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 images and fewer steps, to check that everything runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="pgd,norm,throughput,ensemble", help="comma-separated tables")
    parser.add_argument("--device", default="cpu", help="of the throughput table")
    default = os.environ.get("ROBUSTRES_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/attacks.csv"))
    options = parser.parse_args()
    names = options.only.split(",")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    steps, ensemble_steps, queries = (10, 10, 50) if options.quick else (50, 100, 5000)
    samples, throughput_steps = (1024, steps) if device.type == "cuda" else (16, 10)
    tables = {"throughput": lambda: throughput_table(device, options.rounds, samples, throughput_steps)}
    if (options.shared / "models").is_dir():
        model, x, y = load(options.shared)
        model.requires_grad_(False)
        if options.quick:
            x, y = x[:20], y[:20]
        tables |= {
            "pgd": lambda: pgd_table(model, x, y, options.rounds, steps),
            "norm": lambda: norm_table(model, x, y, options.rounds),
            "ensemble": lambda: ensemble_table(model, x, y, options.rounds, ensemble_steps, queries),
            "schedules": lambda: schedules_table(model, x, y, steps),
        }
    elif names != ["throughput"]:
        print(f"{options.shared} does not hold the network and the images; name their folder with --shared")
        names = [name for name in names if name == "throughput"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        for name in names:
            for row in tables[name]():
                show(row)
                writer.writerow(astuple(row))
                file.flush()


if __name__ == "__main__":
    main()
