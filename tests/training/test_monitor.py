"""The monitor of a training loop: its numbers are those of the certifier, and it does not disturb the training."""

import copy
import warnings

import pytest
import torch
from torch import nn

from robustres.certify import certify, lipschitz
from robustres.errors import InputError
from robustres.models import materialise, residual_net
from robustres.training import RobustnessMonitor, lightning_callback


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 4, 4, generator=generator), torch.arange(12) % 3


def test_the_numbers_are_those_of_the_certifier() -> None:
    torch.manual_seed(0)
    images, labels = images_and_labels()
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    values = RobustnessMonitor(images, labels, eps=(0.01, 0.1))(network)
    report = lipschitz(network, (1, 4, 4), joint=False)
    found = certify(network, images, report=report)
    correct = found.prediction == labels
    assert values["clean"] == correct.double().mean().item()
    for eps in (0.01, 0.1):
        assert values[f"certified@l2:{eps}"] == (correct & (found.radius >= eps)).double().mean().item()
    assert values["lipschitz"] == report.upper
    assert {name for name in values if name.startswith("block/")} == {f"block/{row.name}" for row in report.blocks}


def test_a_network_of_constrained_blocks_is_measured_in_its_materialised_form() -> None:
    images, labels = images_and_labels()
    network = residual_net(block="linear", depth=1, width=4, image_shape=(1, 4, 4), classes=3, activation="maxmin")
    values = RobustnessMonitor(images, labels, eps=(0.1,))(network)
    assert values["lipschitz"] == lipschitz(materialise(network), (1, 4, 4), joint=False).upper


def test_training_is_not_affected_by_the_measurement() -> None:
    images, labels = images_and_labels()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    nn.functional.cross_entropy(network(images), labels).backward()
    before = copy.deepcopy(network.state_dict())
    gradient = network[0].weight.grad
    state = torch.get_rng_state()
    with torch.no_grad():
        RobustnessMonitor(images, labels, eps=(0.1,))(network)
    assert network.training
    assert network[2].training
    assert network[0].weight.grad is gradient
    assert network[0].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_without_a_bound_only_the_accuracy_is_reported() -> None:
    class Jumps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sign(x.flatten(1)[:, :3] - 0.5)

    assert list(RobustnessMonitor(*images_and_labels(), eps=(0.1,))(Jumps())) == ["clean"]


def test_images_without_labels_and_callbacks_that_never_run_are_refused() -> None:
    images, labels = images_and_labels()
    with pytest.raises(InputError, match="label for each image"):
        RobustnessMonitor(images, labels[:3], eps=(0.1,))
    with pytest.raises(InputError, match="every"):
        lightning_callback(RobustnessMonitor(images, labels, eps=(0.1,)), every=0)


def test_lightning_logs_the_numbers_after_every_second_epoch() -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    images, labels = images_and_labels()
    monitor = RobustnessMonitor(images, labels, eps=(0.1,))

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

        def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    seen: list[int] = []

    class Watching(RobustnessMonitor):
        def __call__(self, network: nn.Module) -> dict[str, float]:
            seen.append(1)
            return super().__call__(network)

    watching = Watching(images, labels, eps=(0.1,))
    module = Classifier()
    callback = lightning_callback(watching, every=2, network=lambda whole: whole.model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=6)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few workers and few batches, depending on versions and cores
        trainer.fit(module, loader)
    assert len(seen) == 2
    expected = monitor(module.model)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged.keys() == expected.keys()
    assert all(logged[name] == pytest.approx(expected[name], rel=1e-6) for name in expected)
