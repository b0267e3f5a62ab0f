"""Recipes as TOML, and the effect of each setting on a run."""

import math
from pathlib import Path

import pytest
import torch

from robustres.attacks import PGD
from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.models import ResidualNet, materialise, preset, residual_net
from robustres.threat import ThreatModel
from robustres.training import LOSSES, Recipe, tensorboard_logger, train
from robustres.training.augmentation import _gathered, augmented
from robustres.training.body import Body
from robustres.training.inner_maximisation import worst_in_ball
from robustres.training.losses import annealed_cross_entropy, certified_cross_entropy, divergence, offset, trades


def sets(samples: int = 400) -> tuple[ImageSet, ImageSet]:
    return load_data("digits", split="train", limit=samples), load_data("digits", split="validation", limit=100)


def ordinary(**settings: object) -> ResidualNet:
    return residual_net(block="residual", depth=1, width=8, image_shape=(1, 8, 8), classes=10, **settings)


def test_a_recipe_is_read_from_toml_with_or_without_its_table(tmp_path: Path) -> None:
    flat, table = tmp_path / "flat.toml", tmp_path / "table.toml"
    flat.write_text('loss = "trades"\neps = 1\nnorm = "linf"\nepochs = 3\nmixed_precision = true\n')
    table.write_text("[recipe]\n" + flat.read_text())
    expected = Recipe(loss="trades", eps=1.0, norm="linf", epochs=3, mixed_precision=True)
    assert Recipe.from_toml(flat) == Recipe.from_toml(table) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3", "no setting epoch"),
        ('epochs = "3"', "epochs must be a int"),
        ("epochs = true", "epochs must be a int"),
        ("eps = -1", "eps must be positive"),
        ("loss = [", "cannot read the recipe"),
        ('loss = "emma"\nnorm = "linf"', "is about l2"),
        ("ema = 1.0", r"ema must lie in \[0, 1\)"),
        ("trades_beta = -1.0", "must not be negative"),
        ("shift = -1", "shift must be a whole number"),
        ('optimiser = "sgd"', "optimiser must be one of nadam, adamw"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        Recipe.from_toml(tmp_path / "recipe.toml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        Recipe.from_toml(tmp_path / "nothing.toml")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_lowers_itself(loss: str) -> None:
    model = preset("constrained-tiny")
    recipe = Recipe(loss=loss, epochs=3, eps=0.3, eps_warmup=0.0, attack_steps=2, learning_rate=3e-3)  # type: ignore[arg-type]
    history = train(model, *sets(200), recipe)
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert math.isnan(history.epochs[-1].certified) != recipe.certified


@pytest.mark.parametrize("loss", ["adversarial", "trades"])
def test_adversarial_training_makes_a_network_harder_to_fool(loss: str) -> None:
    threat = ThreatModel("linf", 0.15)
    robust = {}
    for name in ("clean", loss):
        model = ordinary()
        recipe = Recipe(loss=name, eps=threat.eps, norm="linf", epochs=6, attack_steps=4, learning_rate=5e-3)  # type: ignore[arg-type]
        _, validation = sets()
        train(model, *sets(), recipe)
        found = PGD(threat, steps=10)(model, validation.images, validation.labels)
        robust[name] = 1 - found.fooled.double().mean().item()
    assert robust[loss] > robust["clean"] + 0.1


def test_the_inner_attack_stays_in_the_ball_and_raises_the_loss() -> None:
    model = preset("constrained-tiny").eval()
    data, _ = sets(64)
    for norm, order in (("l2", 2), ("linf", torch.inf)):
        threat = ThreatModel(norm, 0.2)  # type: ignore[arg-type]

        def loss(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(model(x), data.labels, reduction="none")

        generator = torch.Generator().manual_seed(0)
        points = worst_in_ball(loss, data.images, threat, steps=5, generator=generator)
        assert points.min() >= 0
        assert points.max() <= 1
        assert (points - data.images).flatten(1).norm(p=order, dim=1).max() <= 0.2 * (1 + 1e-5)
        assert loss(points).mean() > loss(data.images).mean()
    with pytest.raises(InputError, match="supports the norms l2 and linf"):
        worst_in_ball(loss, data.images, ThreatModel("l1", 0.2), steps=1, generator=torch.Generator())


def test_margin_losses_and_regularisation_shrink_an_ordinary_network() -> None:
    bodies = {}
    for name, recipe in {
        "clean": Recipe(epochs=3),
        "regularised": Recipe(epochs=3, lipschitz_weight=0.1),
        "gloro": Recipe(loss="gloro", epochs=3, eps=0.3),
    }.items():
        model = ordinary(downsample=(0,))
        train(model, *sets(), recipe)
        bodies[name] = Body(model)().item()
    assert bodies["regularised"] < 0.7 * bodies["clean"]
    assert bodies["gloro"] < 0.7 * bodies["clean"]


def test_the_bound_of_the_body_is_one_for_constrained_networks_and_includes_the_normalisation() -> None:
    from robustres.models import Normalised

    constrained = preset("constrained-tiny")
    assert Body(constrained)().item() == 1
    assert Body(Normalised(constrained, (0.5,), (0.25,)))().item() == 4


def test_averaged_weights_are_smoother_and_are_the_ones_kept() -> None:
    model = preset("constrained-tiny")
    history = train(model, *sets(), Recipe(loss="emma", epochs=3, ema=0.9, learning_rate=1e-2))
    assert history.epochs[-1].clean > 0.6


def test_jitter_moves_by_less_than_a_pixel_and_at_0_not_at_all() -> None:
    images = load_data("digits", limit=40).images
    generator = torch.Generator().manual_seed(0)
    still = augmented(images, Recipe(augmentation="jitter", jitter=0.0), generator)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)
    ramp = torch.arange(9.0)[:, None].expand(40, 1, 9, 7)  # each pixel contains its row number
    moved = augmented(ramp, Recipe(augmentation="jitter", jitter=0.25), generator)
    centre = moved[:, 0, 4, 3] - 4
    assert 0.1 < float(centre.abs().max()) <= 0.25 + 1e-5
    assert float((moved - ramp)[:, :, 2:7, 2:5].abs().max()) < 1
    with pytest.raises(InputError, match="jitter"):
        Recipe(jitter=-1.0)


def test_augmentation_shifts_and_flips_pixels_without_changing_their_values() -> None:
    images = load_data("digits", limit=20).images
    generator = torch.Generator().manual_seed(0)
    moved = augmented(images, Recipe(augmentation="shift-flip", shift=2), generator)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert (moved.flatten(1).sum(1) <= images.flatten(1).sum(1) + 1e-5).all()
    mirrored = augmented(images, Recipe(augmentation="shift-flip", shift=0), generator)
    kept = (mirrored == images).flatten(1).all(1)
    assert torch.equal(mirrored[~kept], images[~kept].flip(3))
    assert 3 < int(kept.sum()) < 17
    assert augmented(images, Recipe(), generator) is images
    moves = torch.tensor([[0, 1, 4], [2, 0, 3]])
    padded = torch.rand(3, 2, 9, 9)
    windows = [
        image[:, top : top + 5, left : left + 5] for image, top, left in zip(padded, *moves.tolist(), strict=True)
    ]
    assert torch.equal(_gathered(padded, moves, 5, 5), torch.stack(windows))


def test_patience_ends_a_run_that_does_not_improve() -> None:
    model = preset("residual-tiny")
    history = train(model, *sets(200), Recipe(epochs=30, learning_rate=1e-9, patience=2))
    assert len(history.epochs) < 30


def test_mixed_precision_trains_constrained_networks_without_touching_the_constraint() -> None:
    model = preset("constrained-tiny")
    history = train(model, *sets(200), Recipe(loss="emma", epochs=3, learning_rate=1e-2, mixed_precision=True))
    assert history.epochs[-1].clean > 0.3  # random guessing gives 0.1; the exact share depends on the number of threads
    weight = materialise(model).stem[0].weight.detach().flatten(1).double()  # type: ignore[union-attr, index]
    assert float(torch.linalg.matrix_norm(weight, ord=2)) <= 1


def test_the_normalised_head_has_rows_of_norm_one() -> None:
    model = residual_net(
        block="orthogonal", depth=1, width=16, image_shape=(1, 8, 8), classes=10, stem_kernel=8, stem_stride=8,
        head="normalised",
    )  # fmt: skip
    train(model, *sets(200), Recipe(loss="offset", eps=0.3, temperature=4.0, epochs=2))
    rows = materialise(model).head.weight.norm(dim=1)  # type: ignore[union-attr, operator]
    assert torch.allclose(rows, torch.ones(10), atol=1e-5)


def test_losses_have_the_values_of_their_formulas() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    p = torch.softmax(logits, 1)[:, 0]
    assert annealed_cross_entropy(logits, labels, 1.0, 2.0).item() == pytest.approx(
        (-((1 - p) ** 2) * p.log()).mean().item()
    )
    assert annealed_cross_entropy(logits, labels, 1.0, 0.0).item() == pytest.approx(
        certified_cross_entropy(logits, labels, 1.0).item()
    )
    assert offset(logits, labels, logits, 2.0, 0.5)[0, 0].item() == pytest.approx(2 - 2**0.5)
    assert divergence(logits, logits).abs().max() < 1e-7
    assert trades(logits, logits, labels, 6.0).item() == pytest.approx(-p.log().mean().item())


def test_epochs_become_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(preset("constrained-tiny"), *sets(100), Recipe(epochs=1), on_epoch=tensorboard_logger(tmp_path))
    assert list(tmp_path.glob("events*"))
