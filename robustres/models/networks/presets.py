"""Networks by name: tested sizes, for the demo and for a first run on your own data."""

from typing import Any

from robustres.errors import ModelError
from robustres.models.networks.residual_net import Architecture, ResidualNet, build

# About 75,000 parameters each: trained in seconds on 8 x 8 digits.
TINY: dict[str, Architecture] = {
    "plain-tiny": Architecture("plain", 3, 32, (1, 8, 8), 10),
    "residual-tiny": Architecture("residual", 3, 32, (1, 8, 8), 10),
    "constrained-tiny": Architecture(
        "orthogonal", 4, 128, (1, 8, 8), 10, activation="maxmin", stem_kernel=8, stem_stride=8
    ),
}
# What certifies most on 8 x 8 digits in a few seconds: small enough for many steps.
DIGITS: dict[str, Architecture] = {
    "orthogonal-digits": Architecture(
        "orthogonal", 2, 64, (1, 8, 8), 10, activation="maxmin", stem_kernel=8, stem_stride=8
    ),
}
# 28 x 28 digits seen whole: the stem is an isometry from the image to the width.
MNIST: dict[str, Architecture] = {
    "orthogonal-mnist": Architecture(
        "orthogonal", 3, 256, (1, 28, 28), 10, activation="maxmin", stem_kernel=28, stem_stride=28
    ),
}
_DIGITS: dict[str, Any] = {"image_shape": (1, 8, 8), "classes": 10, "stem_kernel": 8, "stem_stride": 8, "kernel": 1}
_COLOUR: dict[str, Any] = {"image_shape": (3, 32, 32), "classes": 10, "stem_kernel": 5, "stem_stride": 2}
# The families by size: tiny for the digits; small has about 0.8 million parameters, for 32 x 32 colour images; large
# has the convolutions of published networks (L12W256 of Hu et al. 2023; 50 of width 90, the large SLL of Araujo et al.
# 2023, for the others), without the dense layers after them. A joint block has two layers.
FAMILIES: dict[str, Architecture] = {
    "liresnet-tiny": Architecture("linear", 4, 128, activation="maxmin", **_DIGITS),
    "cpl-tiny": Architecture("cpl", 4, 128, **_DIGITS),
    "sll-tiny": Architecture("sll", 4, 128, **_DIGITS),
    "joint-tiny": Architecture("joint", 2, 128, **_DIGITS),
    "textbook-tiny": Architecture("textbook", 2, 128, **_DIGITS),
    "liresnet-small": Architecture("linear", 20, 64, activation="maxmin", pool=8, **_COLOUR),
    "cpl-small": Architecture("cpl", 20, 64, pool=8, **_COLOUR),
    "sll-small": Architecture("sll", 20, 64, pool=8, **_COLOUR),
    "joint-small": Architecture("joint", 10, 64, pool=8, **_COLOUR),
    "liresnet-large": Architecture("linear", 12, 256, activation="maxmin", pool=8, **_COLOUR),
    "cpl-large": Architecture("cpl", 50, 90, pool=8, **_COLOUR),
    "sll-large": Architecture("sll", 50, 90, pool=8, **_COLOUR),
    "joint-large": Architecture("joint", 25, 90, pool=8, **_COLOUR),
}
# For one CPU core: most parameters are in layers with few positions.
CIFAR: dict[str, Architecture] = {
    "liresnet-cifar10": Architecture(
        "linear", 3, 96, (3, 32, 32), 10, activation="maxmin", stem_kernel=4, stem_stride=4, downsample=(2,)
    ),
    "orthogonal-cifar10": Architecture(
        "orthogonal-convolution",
        5,
        24,
        (3, 32, 32),
        10,
        activation="maxmin",
        stem_kernel=2,
        stem_stride=2,
        downsample=(2, 4),
        growth=(4, 2),
    ),
    "shift-cifar10": Architecture(
        "shift",
        8,
        64,
        (3, 32, 32),
        10,
        activation="half-abs",
        stem_kernel=2,
        stem_stride=2,
        downsample=(2, 5, 8),
        widths=(128, 256, 160),
        dense=(256, 256),
    ),
}
PRESETS: dict[str, Architecture] = {**TINY, **DIGITS, **MNIST, **CIFAR, **FAMILIES}


def preset(name: str, *, seed: int = 0) -> ResidualNet:
    """The network of that name, its random weights drawn from `seed`; ModelError lists the known names."""
    if name not in PRESETS:
        raise ModelError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return build(PRESETS[name], seed=seed)
