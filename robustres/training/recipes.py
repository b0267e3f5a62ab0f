"""Recipes for the presets of robustres.models, under the same names."""

from robustres.training.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "plain-tiny": Recipe(epochs=8, learning_rate=2e-3),
    "residual-tiny": Recipe(epochs=8, learning_rate=2e-3),
    "constrained-tiny": Recipe(loss="emma", eps=0.5, budget=0.9, epochs=100, optimiser="manifold", learning_rate=8e-3),
    "orthogonal-digits": Recipe(
        loss="emma",
        eps=0.5,
        budget=0.65,
        temperature=8.0,
        epochs=150,
        optimiser="manifold",
        learning_rate=8e-3,
        manifold_learning_rate=1.5e-2,
        augmentation="jitter",
        keep="last",
    ),
    "liresnet-cifar10": Recipe(
        loss="emma", eps=54 / 255, epochs=22, batch_size=256, learning_rate=3e-3, augmentation="shift-flip", shift=2
    ),
    "orthogonal-cifar10": Recipe(
        loss="emma", eps=64 / 255, epochs=24, batch_size=128, learning_rate=3e-3, augmentation="shift-flip", shift=2
    ),
    "orthogonal-mnist": Recipe(
        loss="emma",
        eps=1.58,
        budget=1.95,
        eps_warmup=0.2,
        epochs=120,
        batch_size=256,
        optimiser="manifold",
        learning_rate=8e-3,
        mixed_precision=True,
    ),
    "shift-cifar10": Recipe(
        loss="emma",
        eps=36 / 255,
        budget=72 / 255,
        eps_warmup=0.3,
        epochs=50,
        batch_size=250,  # so that rows of matrices do not lie a power of two apart
        optimiser="manifold",
        learning_rate=8e-3,
        manifold_learning_rate=4e-3,
        bias_learning_rate=1e-3,
        warmup=0.05,
        augmentation="shift-flip",
        shift=2,
        mixed_precision=True,
    ),
}
