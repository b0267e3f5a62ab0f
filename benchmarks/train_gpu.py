"""Train the image recipe at the largest size that a GPU allows in a given time: checkpoint, curve, certificate.

    python benchmarks/train_gpu.py --data npy:DIR --minutes 12 --out runs/train-gpu
    python benchmarks/train_gpu.py --data npy:DIR --minutes 1 --limit 512 --scales 1 --device cpu    (a trial)

The network is the preset shift-cifar10, with every width multiplied by the largest of --scales that can be trained for
at least --epochs epochs in that time (a few steps of each are timed first; a scale that does not fit into memory is
skipped); the remaining time is used for more epochs. The epoch is chosen on the validation split. The files written to
--out are model.safetensors, recipe.toml, curve.csv, and certificate.json, certified by robustres.certify on the CPU in
float64 on the test split, which is not used before. An interrupted run continues when it is started again.
"""

import argparse
import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import torch

from robustres.certify import certify
from robustres.data import ImageSet, load_data
from robustres.models import Architecture, build, materialise, save_model
from robustres.models.networks.presets import PRESETS
from robustres.training import Epoch, Plan, Recipe, train
from robustres.training.recipes import RECIPES

NAME = "shift-cifar10"
RADII = {"36/255": 36 / 255, "72/255": 72 / 255, "108/255": 108 / 255}
TIMED_STEPS = 12
SHARE = 0.92  # share of the time that is planned; the rest is for validation and variation


def scaled(factor: float, data: ImageSet) -> Architecture:
    """The preset for these images with every width times `factor`, in multiples of 16."""
    preset = PRESETS[NAME]
    width, *others = (max(16, 16 * round(factor * size / 16)) for size in (preset.width, *preset.widths, *preset.dense))
    widths, dense = tuple(others[: len(preset.widths)]), tuple(others[len(preset.widths) :])
    found = replace(preset, width=width, widths=widths, dense=dense)
    return replace(found, image_shape=data.image_shape, classes=data.classes)


def seconds_per_epoch(architecture: Architecture, recipe: Recipe, data: ImageSet, device: str) -> float | None:
    """Estimated from a few timed steps after a warm-up; None if the network does not fit into memory."""
    part = data.first(min(len(data), TIMED_STEPS * recipe.batch_size))
    network, probe = build(architecture), replace(recipe, epochs=1)
    few = part.first(min(len(part), recipe.batch_size))
    try:
        train(network, few, few, probe, device=device)
        start = perf_counter()
        train(network, part, few, probe, device=device)
    except torch.OutOfMemoryError:
        return None
    return (perf_counter() - start) * len(data) / len(part)


def plan(factors: list[float], recipe: Recipe, data: ImageSet, device: str, seconds: float) -> tuple[Plan, str]:
    """The largest network that can be trained for recipe.epochs epochs in that time, and the measurements."""
    found: tuple[Plan, str] | None = None
    for factor in sorted(factors):
        architecture = scaled(factor, data)
        cost = seconds_per_epoch(architecture, recipe, data, device)
        if cost is None:
            break
        epochs = int(SHARE * seconds / cost)
        if found is not None and epochs < recipe.epochs:
            break
        measured = f"widths x {factor:g}: {cost:.3g} s per epoch"
        found = Plan(architecture.as_dict(), None, replace(recipe, epochs=max(1, epochs))), measured
    if found is None:
        raise SystemExit("not even the smallest of --scales fits into memory; lower --batch-size")
    return found


def certified(network: torch.nn.Module, data: ImageSet) -> dict[str, float]:
    """Shares of the images classified correctly, and of those with a proved l2 radius of at least each of RADII."""
    radii, right = [], []
    for part in torch.split(torch.arange(len(data)), 1000):
        result = certify(network, data.batch(part))
        radii.append(result.radius)
        right.append(result.prediction == data.labels[part])
    radius, correct = torch.cat(radii), torch.cat(right)
    shares = {name: correct & (radius >= eps) for name, eps in RADII.items()}
    return {"clean": float(correct.double().mean())} | {
        f"l2 {name}": float(share.double().mean()) for name, share in shares.items()
    }


def main() -> None:
    """Plan, train, write, certify."""
    options = parse()
    out: Path = options.out
    data = {
        split: load_data(options.data, root=options.data_root, split=split, limit=options.limit)
        for split in ("train", "validation", "test")
    }
    recipe = replace(RECIPES[NAME], epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    file = out / "plan.json"
    if file.is_file():  # an interrupted run keeps its planned size
        planned = json.loads(file.read_text())
        chosen = Plan(planned["architecture"], None, Recipe.from_dict(planned["recipe"]))
    else:
        chosen, measured = plan(options.scales, recipe, data["train"], options.device, 60 * options.minutes)
        print(f"{measured}, so {chosen.recipe.epochs} epochs", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"architecture": chosen.architecture, "recipe": chosen.recipe.as_dict()}))
    network = chosen.build(data["train"])
    start = perf_counter()

    def show(epoch: Epoch) -> None:
        shares = f"correct {100 * epoch.clean:.1f} %, estimated certified {100 * epoch.certified:.1f} %"
        print(f"epoch {epoch.epoch}: {shares}, {perf_counter() - start:.0f} s", flush=True)

    history = train(network, data["train"], data["validation"], chosen.recipe,
                    device=options.device, folder=out, on_epoch=show)  # fmt: skip
    seconds = perf_counter() - start
    network = network.cpu()
    save_model(network, out)
    chosen.write(out / "recipe.toml")
    with (out / "curve.csv").open("w", newline="") as curve:
        writer = csv.DictWriter(curve, list(asdict(history.epochs[0])))
        writer.writeheader()
        writer.writerows(history.rows)
    facts = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": len(history.epochs),
        "best_epoch": history.best_epoch,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "test": certified(materialise(network), data["test"]),
    }
    (out / "certificate.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, not counting the initial timing")
    parser.add_argument(
        "--epochs", type=int, default=76, help="smallest number of epochs for which a larger network is chosen"
    )
    parser.add_argument("--scales", type=lambda text: [float(part) for part in text.split(",")], default=[1, 1.5, 2, 4])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--limit", type=int, default=None, help="samples of each split, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/train-gpu"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
