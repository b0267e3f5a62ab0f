"""The documented API: every public name exists, the examples on the pages run, the notebook's cells run in order."""

import ast
import doctest
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import robustres
from robustres.cli.main import commands

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_exists_and_is_documented() -> None:
    for name in robustres.__all__:
        assert getattr(robustres, name).__doc__
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        robustres.nothing_of_that_name  # noqa: B018


def test_every_command_is_in_the_table_of_calls() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    for command in commands.registered_commands:
        assert command.callback is not None
        assert f"`robustres {command.callback.__name__}`" in page or f", `{command.callback.__name__}`" in page


def test_the_examples_on_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert found.attempted > 10
    assert found.failed == 0


def test_a_module_and_tensors_are_enough(tmp_path: Path) -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(6, 1, 8, 8)
    run = robustres.attack(net, (images, torch.arange(6)), tmp_path, robustres.Settings(eps={"l2": (0.5,)}))
    assert set(run.attacks["attack"]) == {"strong"}
    assert len(run.attacks) == 6
    assert run.certificates.empty
    assert not run.blocks.empty or run.lipschitz is None


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """Four images with labels."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 8, 8), index / 4), index % 2


IMAGES = torch.stack([Pairs()[index][0] for index in range(4)])


@pytest.mark.parametrize(
    "images",
    [
        *(IMAGES, IMAGES.numpy(), IMAGES.tolist(), list(IMAGES), (IMAGES.numpy() * 255).astype("uint8")),
        *((IMAGES, [0, 1, 0, 1]), Pairs(), DataLoader(Pairs(), 3), robustres.load_data("digits"), "digits"),
    ],
    ids=["tensor", "array", "list", "list of tensors", "bytes", "pair", "Dataset", "DataLoader", "ImageSet", "words"],
)
def test_an_audit_accepts_starting_images_in_every_form(images: object) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assert robustres.audit(net, (1, 8, 8), claimed=1e-6, images=images, restarts=2).verdict == "refuted"


def test_a_network_is_trained_on_a_dataset_as_on_tensors() -> None:
    net, recipe = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), robustres.Recipe(epochs=1, batch_size=2)
    history = robustres.train(net, Pairs(), DataLoader(Pairs(), 2), recipe)
    assert len(history.epochs) == 1


def test_the_notebook_runs_and_contains_its_results_but_no_local_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "examples" / "first_steps.ipynb").read_text()
    assert str(ROOT) not in text
    assert "/home/" not in text
    assert "/tmp/" not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    names: dict[str, object] = {}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        exec(compile(tree, "first_steps.ipynb", "exec"), names)
        assert cell["outputs"] or not isinstance(tree.body[-1], ast.Expr)
    assert (tmp_path / "runs" / "first-steps" / "report.html").is_file()
