"""Common objects are accepted wherever images and labels are expected, or refused in one sentence."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robustres.data import load_data
from robustres.errors import DataError, InputError, RobustresError
from robustres.evaluation import Settings, attack, evaluate
from robustres.threat import ThreatModel, require_width

X = torch.randint(256, (5, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float() / 255
Y = torch.tensor([0, 1, 2, 0, 1])


class Pictures(Dataset[tuple[Image.Image, int]]):
    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = (X[index] * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels), int(Y[index])


@pytest.mark.parametrize(
    "given",
    [
        (X.numpy(), Y.numpy()),
        (X.tolist(), Y.tolist()),
        [list(X), Y.numpy().astype(np.uint8)],
        ((X * 255).round().byte().numpy(), Y),
        (X.clone().requires_grad_(), Y),
        (X.numpy()[:, :, ::-1].copy()[:, :, ::-1], Y.numpy()[::-1].copy()[::-1]),
        (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=2),
        DataLoader([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)], batch_size=2),
        Pictures(),
    ],
)
def test_every_accepted_object_gives_the_same_images(given: Any) -> None:
    expected = load_data((X, Y))
    assert load_data(given).sha256 == expected.sha256
    assert load_data(given, limit=3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "got NoneType"),
        ((X, 3), "labels must be int64"),
        ((X, torch.eye(3)[Y]), r"for one-hot rows take labels.argmax\(1\)"),
        ((X, Y[:, None]), r"take labels\[:, 0\]"),
        (((X * 65535).numpy().astype("u2"), Y), "divide them by the value of white, such as 255 or 65535"),
        ((X, Y > 0), "got bool"),
        ((["a"], [1]), "images must be a tensor, an array or a list of numbers"),
        ((X.permute(0, 2, 3, 1).numpy(), Y), r"images.transpose\(0, 3, 1, 2\)"),
        (DataLoader(TensorDataset(X)), "must give pairs"),
        ([(X[0], 0), (X[1], 1)], "images must be"),
    ],
)
def test_objects_that_are_not_images_and_labels_are_refused_in_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(given)


def test_float64_images_go_through_a_run_and_appear_on_its_page(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    settings = Settings(eps={"l2": (1.0,)}, attacks=("fgsm",))
    run = evaluate(model, (X.double(), model(X).argmax(1)), tmp_path / "run", settings)
    assert len(run.folder.tables()["examples"])


def test_budgets_may_be_single_numbers_and_strings() -> None:
    assert Settings(eps={"l2": 0.5}).eps == Settings(eps={"l2": [0.5]}).eps == {"l2": (0.5,)}  # type: ignore[dict-item]
    assert Settings(eps={"linf": "1/255,8/255"}, attacks="pgd").eps == {"linf": (1 / 255, 8 / 255)}  # type: ignore[dict-item, arg-type]
    for eps in (0.5, {"l2": None}, {"l2": "much"}):
        with pytest.raises(InputError, match=r"eps|number"):
            Settings(eps=eps)  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8), ("l2", 128), ("l1", 200)])
def test_an_eps_larger_than_the_data_range_is_refused_with_the_likely_intention(
    norm: Any, eps: float, tmp_path: Any
) -> None:
    with pytest.raises(InputError, match=f"did you mean {eps}/255"):
        require_width(ThreatModel(norm, eps), 3 * 6 * 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    with pytest.raises(InputError, match=f"did you mean {eps}/255"):
        evaluate(model, (X, Y), tmp_path / "run", Settings(eps={norm: (eps,)}, attacks=()))
    assert not (tmp_path / "run").exists()


def test_a_module_exported_for_one_image_is_evaluated_and_a_quantised_one_is_refused_in_one_sentence(
    tmp_path: Any,
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    exported = torch.export.export(model, (X[:1],)).module()
    run = evaluate(exported, (X, Y), tmp_path / "run", Settings(eps={"l2": (0.1,)}, attacks=("fgsm",)))
    assert len(run.certificates) == len(run.attacks) == 5
    fixed = torch.export.export(_Fixed(model).eval(), (X[:1],)).module()
    with pytest.raises(RobustresError, match=r"cannot process images|depends on"):
        attack(fixed, (X, Y), tmp_path / "fixed", Settings(eps={"l2": (0.1,)}, attacks=("fgsm",)))


class _Fixed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model[1](x.view(x.shape[0], -1))  # type: ignore[index]
        return logits
