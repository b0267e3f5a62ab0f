"""Networks by name: sizes that were tried, for the demo and for a first run on one's own data."""

from robustres.errors import ModelError
from robustres.models.residual_net import Architecture, ResidualNet, build

# About 75,000 parameters each: trained in seconds on 8 x 8 digits.
TINY: dict[str, Architecture] = {
    "plain-tiny": Architecture("plain", 3, 32, (1, 8, 8), 10),
    "residual-tiny": Architecture("residual", 3, 32, (1, 8, 8), 10),
    "constrained-tiny": Architecture(
        "orthogonal", 4, 128, (1, 8, 8), 10, activation="maxmin", stem_kernel=8, stem_stride=8
    ),
}
# 28 x 28 digits seen whole: the stem is an isometry from the image to the width.
MNIST: dict[str, Architecture] = {
    "orthogonal-mnist": Architecture(
        "orthogonal", 3, 256, (1, 28, 28), 10, activation="maxmin", stem_kernel=28, stem_stride=28
    ),
}
PRESETS: dict[str, Architecture] = {**TINY, **MNIST}


def preset(name: str, *, seed: int = 0) -> ResidualNet:
    """The network of that name, its random weights drawn from `seed`; ModelError lists the known names."""
    if name not in PRESETS:
        raise ModelError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return build(PRESETS[name], seed=seed)
