"""How near the examples of minimum-norm attacks are at equal gradients, beside the nearest ones of long runs.

    python benchmarks/minimum_norm.py [--steps 45] [--images 100] [--networks resnet_2b,plain,...] [--norms l2,linf,l1]
                                      [--short] [--folder runs/networks]

One row per network and norm (networks.py): the median distances of `ldn` and of the best earlier attack (`ddn` in l2,
`fmn` otherwise) with `--steps` gradients per image, the median of the nearest examples that any search found, the ratio
of the medians and that of the geometric means, and the gap: the geometric mean of the distance relative to the nearest
example of each image, minus 1, for both attacks. The long searches are `ldn` with 150 gradients for each of four
smoothings, the earlier attack with 200, and FAB with 20 for each of up to nine classes; --short leaves them out.
Nothing here is random.
"""

import argparse
import math
from pathlib import Path

import torch
from networks import Network, network
from torch import Tensor

from robustres.attacks import DDN, FAB, FMN, LDN, Attack
from robustres.threat import Norm, ThreatModel

NETWORKS = "resnet_2b,plain,residual,constrained,adversarially trained,100 classes"


def correct(net: Network, images: int) -> tuple[Tensor, Tensor]:
    """The first images that the network classifies correctly, and their labels."""
    with torch.no_grad():
        right = (net.model(net.x).argmax(dim=1) == net.y).nonzero().flatten()[:images]
    return net.x[right], net.y[right]


def row(net: Network, norm: Norm, steps: int, images: int, *, short_only: bool) -> str:
    x, y = correct(net, images)
    threat = ThreatModel(norm, math.inf)
    earlier = DDN if norm == "l2" else FMN
    short: tuple[Attack, ...] = (LDN(threat, steps=steps), earlier(threat, steps=steps))
    long: tuple[Attack, ...] = (
        LDN(threat, steps=600, sharpness=(2.0, 4.0, 10.0, 30.0)),
        earlier(threat, steps=200),
        FAB(threat, steps=20),
    )
    long = () if short_only else long
    ours, theirs = (attack(net.model, x, y).distance for attack in short)
    best = torch.stack([ours, theirs, *(attack(net.model, x, y).distance for attack in long)]).amin(dim=0)
    medians = [float(values.quantile(0.5)) for values in (ours, theirs, best)]
    ratio = medians[0] / medians[1]
    mean = float((ours / theirs).log().mean().exp())
    gaps = [float((values / best).log().mean().expm1()) for values in (ours, theirs)]
    return (
        f"medians {medians[0]:.4f} {medians[1]:.4f} nearest {medians[2]:.4f}  ratio {ratio:.3f} of means {mean:.3f}  "
        f"gaps {gaps[0]:.1%} {gaps[1]:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--norms", default="l2,linf,l1")
    parser.add_argument("--short", action="store_true", help="without the long searches")
    parser.add_argument("--folder", type=Path, default=Path("runs/networks"), help="of the networks trained here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.networks.split(","):
        net = network(name, options.folder)
        for norm in options.norms.split(","):
            found = row(net, norm, options.steps, options.images, short_only=options.short)
            print(f"{name:22} {norm:5} {found}", flush=True)


if __name__ == "__main__":
    main()
