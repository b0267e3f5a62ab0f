"""The training loop: it learns, is exactly reproducible, selects on validation, and its losses are correct."""

import math

import pytest
import torch

from robustres.data import ImageSet, load_data
from robustres.errors import InputError, ModelError
from robustres.models import materialise, preset, residual_net
from robustres.training import RECIPES, Recipe, train
from robustres.training.losses import emma, gloro
from robustres.training.margins import pairwise_radii, row_distances


def small_digits() -> tuple[ImageSet, ImageSet]:
    return load_data("digits", split="train", limit=300), load_data("digits", split="validation", limit=100)


def test_a_constrained_network_learns_to_certify() -> None:
    model = preset("constrained-tiny")
    history = train(model, *small_digits(), Recipe(loss="emma", epochs=6, learning_rate=1e-2))
    assert history.epochs[-1].clean > 0.8
    assert history.epochs[-1].certified > 0.35
    assert history.best_epoch == max(history.epochs, key=lambda epoch: (epoch.score, -epoch.epoch)).epoch
    assert set(history.rows[0]) == {"epoch", "loss", "clean", "certified"}


def test_clean_training_accepts_any_network_and_reports_no_certified_accuracy() -> None:
    model = residual_net(block="residual", depth=1, width=8, image_shape=(1, 8, 8), classes=10)
    history = train(model, *small_digits(), Recipe(epochs=3, learning_rate=3e-3))
    assert history.epochs[-1].clean > 0.5
    assert math.isnan(history.epochs[-1].certified)
    assert not model.training


def test_the_same_recipe_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        model = preset("constrained-tiny")
        train(model, *small_digits(), Recipe(loss="gloro", epochs=1))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_weights_kept_are_those_of_the_best_epoch() -> None:
    model = preset("constrained-tiny")
    seen = []
    train_set, validation = small_digits()

    def remember(epoch) -> None:  # type: ignore[no-untyped-def]
        seen.append((epoch.score, epoch.epoch, {k: v.clone() for k, v in model.state_dict().items()}))

    history = train(model, train_set, validation, Recipe(loss="emma", epochs=4, learning_rate=3e-2), on_epoch=remember)
    best = max(seen, key=lambda entry: (entry[0], -entry[1]))
    assert history.best_epoch == best[1]
    assert all(torch.equal(value, best[2][name]) for name, value in model.state_dict().items())


def test_the_last_epoch_is_kept_if_the_recipe_says_so() -> None:
    recipe = Recipe(loss="emma", epochs=3, learning_rate=0.3, keep="last")
    model = preset("orthogonal-digits")
    last = []
    history = train(model, *small_digits(), recipe, on_epoch=lambda _: last.append(model.head.weight.detach().clone()))  # type: ignore[operator,union-attr]
    assert history.best_epoch == 3
    assert torch.equal(model.head.weight, last[-1])  # type: ignore[arg-type,union-attr]
    with pytest.raises(InputError, match="patience"):
        Recipe(keep="last", patience=2)


def test_margin_losses_refuse_networks_whose_norm_they_cannot_compute() -> None:
    with pytest.raises(InputError, match="needs a network of residual_net, got Linear"):
        train(torch.nn.Linear(2, 2), *small_digits(), Recipe(loss="emma", epochs=1))
    normalised = residual_net(block="residual", depth=1, width=4, image_shape=(1, 8, 8), classes=10, batch_norm=True)
    with pytest.raises(InputError, match="without batch normalisation"):
        train(normalised, *small_digits(), Recipe(loss="emma", epochs=1))
    with pytest.raises(InputError, match="no norm is known for HighwayBlock"):
        train(
            residual_net(block="highway", depth=1, width=4, image_shape=(1, 8, 8), classes=10),
            *small_digits(),
            Recipe(loss="gloro", epochs=1),
        )


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = preset("residual-tiny")
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="the loss is nan in epoch 1"):
        train(model, *small_digits(), Recipe(epochs=1))


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "best"}, {"epochs": 0}, {"batch_size": 0}, {"eps": -0.1}, {"learning_rate": math.nan}, {"warmup": 1.0}],
)
def test_an_impossible_recipe_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_every_preset_recipe_names_a_preset_network() -> None:
    for name in RECIPES:
        assert preset(name).architecture.classes >= 2


def test_pairwise_radii_are_exact_for_a_linear_classifier() -> None:
    """The nearest point of another class, by projection on the hyperplane between the two classes."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 3).double()
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    logits = head(x)
    labels = logits.argmax(dim=1)
    radii = pairwise_radii(logits, labels, row_distances(head, labels))
    nearest = radii.argmin(dim=1)
    for row in range(len(x)):
        direction = head.weight[nearest[row]] - head.weight[labels[row]]
        moved = head(x[row] + radii[row, nearest[row]] * direction / direction.norm())
        assert moved[nearest[row]].item() == pytest.approx(moved[labels[row]].item(), abs=1e-9)


def test_gloro_logits_are_won_exactly_where_the_radius_exceeds_eps() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 4, generator=generator)
    labels = torch.randint(4, (200,), generator=generator)
    distances = row_distances(torch.nn.Linear(7, 4), labels)
    radii = pairwise_radii(logits, labels, distances, 1.5).amin(dim=1)
    worst = gloro(logits, labels, distances, 1.5, 0.3)
    rivals = worst.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    assert torch.equal(worst.gather(1, labels[:, None]).squeeze(1) > rivals, radii > 0.3)


def test_emma_never_requires_more_than_gloro() -> None:
    logits, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)), torch.zeros(50, dtype=torch.int64)
    distances = row_distances(torch.nn.Linear(7, 4), labels)
    asked = emma(logits, labels, distances, 1.0, 0.3) - logits
    assert (asked >= 0).all()
    assert (asked <= gloro(logits, labels, distances, 1.0, 0.3) - logits + 1e-6).all()


def test_materialised_training_results_keep_their_accuracy() -> None:
    model = preset("constrained-tiny")
    train_set, validation = small_digits()
    train(model, train_set, validation, Recipe(loss="emma", epochs=2, learning_rate=1e-2))
    with torch.no_grad():
        assert torch.allclose(model(validation.images), materialise(model)(validation.images), atol=1e-3)
