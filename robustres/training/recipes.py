"""Recipes that go with the presets of robustres.models, by the same names."""

from robustres.training.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "plain-tiny": Recipe(epochs=8, learning_rate=2e-3),
    "residual-tiny": Recipe(epochs=8, learning_rate=2e-3),
    "constrained-tiny": Recipe(loss="emma", eps=0.5, epochs=40, learning_rate=1e-2),
    "liresnet-cifar10": Recipe(
        loss="emma", eps=54 / 255, epochs=22, batch_size=256, learning_rate=3e-3, augmentation="shift-flip", shift=2
    ),
    "orthogonal-cifar10": Recipe(
        loss="emma", eps=64 / 255, epochs=24, batch_size=128, learning_rate=3e-3, augmentation="shift-flip", shift=2
    ),
    "orthogonal-mnist": Recipe(loss="emma", eps=1.58, epochs=6, batch_size=512, learning_rate=8e-3),
}
