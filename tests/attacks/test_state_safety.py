"""An attack leaves the model and the process as they were, even if it raises."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import PGD, Attack, Square, attack_names, make_attack
from robustres.errors import DataError, InputError, ModelError
from robustres.results import AVERAGE_CASE
from robustres.threat import Norm, ThreatModel

from .conftest import Case, threat_for

LINF = ThreatModel("linf", 8 / 255)
NAMES = (*attack_names(), "torchattacks:PGD", "torchattacks:Pixle", "torchattacks:FAB")


def short(name: str) -> Attack:
    """The attack with few steps, in a norm for which it is defined."""
    threat = threat_for(name, linf=8 / 255, l2=0.3)
    settings = {"ensemble": {"steps": 3, "queries": 3}, "fgsm": {}, "torchattacks:Pixle": {"max_iterations": 2}}
    settings |= {"hopskipjump": {"queries": 30}} | {name: {} for name in AVERAGE_CASE}
    return make_attack(name, threat, **settings.get(name, {"steps": 3}))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [buffer.clone() for buffer in model.buffers()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def same(before: object, after: object) -> bool:
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return torch.equal(before, after)
    return before == after


class FailsAt(nn.Module):
    """Raise at the given call."""

    def __init__(self, model: nn.Module, call: int, error: type[BaseException]) -> None:
        super().__init__()
        self.model, self.call, self.error, self.calls = model, call, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise self.error("injected")
        logits: Tensor = self.model(x)
        return logits


def prepare(model: nn.Module) -> None:
    """A state that a careless attack would destroy: mixed flags, and gradients from elsewhere."""
    for position, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(position % 2 == 0)
        parameter.grad = torch.full_like(parameter, float(position)) if position % 2 == 0 else None


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_model_changes(name: str, small: Case) -> None:
    prepare(small.model)
    before = snapshot(small.model)
    short(name)(small.model, small.x, small.y)
    assert same(before, snapshot(small.model))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2])
def test_nothing_changes_when_the_attack_ends_in_an_error(
    name: str, error: type[BaseException], call: int, small: Case
) -> None:
    model = FailsAt(small.model, call, error).eval()
    prepare(model)
    before = snapshot(model)
    with pytest.raises(error, match="injected"):
        short(name)(model, small.x, small.y)
    assert same(before, snapshot(model))


def test_a_model_in_training_mode_is_an_error_unless_allowed(small: Case) -> None:
    small.model.train()
    small.model.get_submodule("branch.1").eval()
    with pytest.raises(ModelError, match=r"training mode .* call model.eval\(\)"):
        PGD(LINF)(small.model, small.x, small.y)
    before = snapshot(small.model)
    PGD(LINF, steps=2, allow_training_mode=True)(small.model, small.x, small.y)
    assert same(before, snapshot(small.model))


def test_an_attack_runs_under_no_grad_and_inference_mode(small: Case) -> None:
    expected = PGD(LINF)(small.model, small.x, small.y)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            result = PGD(LINF)(small.model, small.x.clone(), small.y.clone())
        assert torch.equal(result.examples, expected.examples)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * 255, y), "divide by 255"),
        (lambda x, y: (x * 4 - 2, y), "undo the normalisation"),
        (lambda x, y: (x.byte(), y), "floating point"),
        (lambda x, y: (x / 0 * 0, y), "NaN"),
        (lambda x, y: (x, y.float()), "labels must be integers"),
        (lambda x, y: (x, y[:-1]), "labels must be integers of shape"),
        (lambda x, y: (x, torch.eye(4)[y].long()), r"y.argmax\(dim=1\)"),
        (lambda x, y: (x[0], y[0]), r"x\[None\]"),
        (lambda x, y: (["a"], y), "images must be a tensor, an array or a list of numbers, got list"),
        (lambda x, y: (x.permute(0, 2, 3, 1).numpy(), y), "last axis looks like the channel axis"),
        (lambda x, y: (x, y + 3), "outside the model's 4 classes"),
        (lambda x, y: (x, y - 9), "outside the model's 4 classes"),
    ],
)
def test_invalid_data_are_refused_with_advice(
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str, small: Case
) -> None:
    x, y = spoil(small.x, small.y)
    with pytest.raises(DataError, match=message):
        PGD(LINF)(small.model, x, y)


def test_arrays_lists_and_images_that_require_gradients_are_accepted(small: Case) -> None:
    attack = PGD(LINF, steps=2)
    expected = attack(*small)
    for x, y in (
        (small.x.numpy(), small.y.numpy().astype("int32")),
        (small.x.tolist(), small.y.tolist()),
        (list(small.x), list(small.y)),
        (small.x.clone().requires_grad_(), small.y),
    ):
        assert torch.equal(attack(small.model, x, y).examples, expected.examples)


def test_a_plain_function_is_refused(small: Case) -> None:
    with pytest.raises(ModelError, match=r"torch.nn.Module, got function"):
        PGD(LINF)(lambda x: small.model(x), small.x, small.y)  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8.0), ("l2", 20.0), ("l1", 300.0)])
def test_an_eps_that_allows_every_image_is_refused(norm: Norm, eps: float, small: Case) -> None:
    with pytest.raises(InputError, match=rf"allows every image .* did you mean {eps:g}/255|write 8/255"):
        PGD(ThreatModel(norm, eps), steps=1)(small.model, small.x, small.y)


def test_an_output_of_the_wrong_shape_is_refused(small: Case) -> None:
    for model in (nn.Flatten(0).eval(), nn.Sequential(small.model, nn.Linear(4, 1)).eval()):
        with pytest.raises(ModelError, match=r"logits of shape|at least 2"):
            PGD(LINF)(model, small.x, small.y)


def test_images_on_another_device_than_the_weights_are_refused_with_advice(small: Case) -> None:
    with pytest.raises(ModelError, match=r"model is on meta and the images are on cpu; move them by x.to\('meta'\)"):
        PGD(LINF)(nn.Sequential(nn.Flatten(), nn.Linear(192, 4, device="meta")).eval(), small.x, small.y)
    failing = FailsAt(small.model, 1, RuntimeError).eval()
    with pytest.raises(RuntimeError, match="injected"):
        PGD(LINF)(failing, small.x, small.y)


class Writing(nn.Module):
    """Normalise the images in place."""

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.sub_(0.1).mul_(0.9) if self.in_place else (x - 0.1) * 0.9)
        return logits


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_modifies_its_input_is_attacked_like_one_that_does_not(name: str, small: Case) -> None:
    honest, writing = (Writing(small.model, in_place=in_place).eval() for in_place in (False, True))
    with torch.no_grad():
        clean = honest(small.x)
    before = small.x.clone()
    expected, found = (short(name)(model, small.x, clean.argmax(dim=1), clean=clean) for model in (honest, writing))
    assert torch.equal(small.x, before)
    assert torch.equal(found.fooled, expected.fooled)
    torch.testing.assert_close(found.examples, expected.examples)


def test_a_model_that_returns_probabilities_is_refused_with_advice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(dim=1)).eval()
    with pytest.raises(ModelError, match="return logits"):
        PGD(ThreatModel("linf", 0.1))(model, torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64))


class Noisy(nn.Module):
    """Add new noise to the input in every call."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + self.sigma * torch.randn_like(x))
        return logits


def test_a_model_that_answers_at_random_is_refused(small: Case) -> None:
    with pytest.raises(ModelError, match="differently in two calls"):
        PGD(LINF)(Noisy(small.model, 0.25).eval(), small.x, small.y)
    PGD(LINF, steps=1)(Noisy(small.model, 0.0).eval(), small.x, small.y)


class Standardised(nn.Module):
    """Subtract the mean of the batch, or its first image."""

    def __init__(self, model: nn.Module, common: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.common = model, common

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x - self.common(x))
        return logits


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("batch_size", [1, 5, 256])
@pytest.mark.parametrize("common", [lambda x: x.mean(0, keepdim=True), lambda x: x[:1], lambda x: x[-1:], len])
def test_an_answer_that_depends_on_the_batch_is_refused_as_such(
    small: Case, count: int, batch_size: int, common: Callable[[Tensor], Tensor]
) -> None:
    model = Standardised(small.model, common).eval()
    with pytest.raises(ModelError, match="depends on the other images of its batch"):
        PGD(LINF, batch_size=batch_size)(model, small.x[:count], small.y[:count])


class NeverEmpty(nn.Module):
    """The most common flattening idiom, which fails for zero images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.view(x.size(0), -1).view_as(x))
        return logits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["all", "none", "some"])
def test_no_attack_runs_the_model_on_zero_images(name: str, wrong: str, small: Case) -> None:
    model = NeverEmpty(small.model).eval()
    labels = {"all": (small.y + 1) % 4, "none": small.y, "some": small.y.clone()}[wrong]
    labels[:2] = (labels[:2] + (wrong == "some")) % 4
    wide = threat_for(name, linf=0.9, l2=0.9, l0=90)
    for attack in (short(name), replace(short(name), threat=wide, batch_size=5)):
        assert len(attack(model, small.x, labels)) == len(labels)


class Stepwise(nn.Module):
    """Round the input, so that the gradient is zero; `detached` cuts the graph altogether."""

    def __init__(self, model: nn.Module, *, detached: bool) -> None:
        super().__init__()
        self.model, self.detached = model, detached

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(x * 8) / 8
        logits: Tensor = self.model(rounded.detach() if self.detached else rounded)
        return logits


@pytest.mark.parametrize("detached", [False, True])
def test_gradient_attacks_warn_about_a_model_without_gradients(small: Case, detached: bool) -> None:
    model = Stepwise(small.model, detached=detached).eval()
    with pytest.warns(UserWarning, match="not differentiable there .* black-box attack"):
        PGD(LINF, steps=1)(model, small.x, small.y)
    Square(LINF, steps=5)(model, small.x, small.y)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "ensemble", "fmn"])
def test_clean_logits_that_are_known_save_a_pass_and_change_nothing(name: str, small: Case) -> None:
    attack = short(name)
    seen: list[int] = []
    watch = small.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    own = attack(*small)
    passes, _ = len(seen), seen.clear()
    with torch.no_grad():
        clean = small.model(small.x)
    seen.clear()
    given = attack(*small, clean=clean)
    watch.remove()
    assert len(seen) == passes - 1
    assert torch.equal(given.examples, own.examples)
    assert torch.equal(given.distance, own.distance)


def test_clean_logits_of_another_model_are_refused(small: Case) -> None:
    clean = small.model(small.x).detach()
    with pytest.raises(ModelError, match="differ by"):
        short("pgd")(*small, clean=clean + 1)
    with pytest.raises(ModelError, match="shape"):
        short("pgd")(*small, clean=clean[:3])
