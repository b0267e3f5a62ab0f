"""Robustness during training, for your own training loop and for Lightning."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustres.at_hand import images_tensor, labels_tensor
from robustres.certify import certify, lipschitz
from robustres.errors import InputError, MissingExtraError
from robustres.guard import random_state_kept, untouched
from robustres.models import materialise
from robustres.results import eps_words
from robustres.threat import ThreatModel


class RobustnessMonitor:
    """The certified accuracy of a network during training: a dictionary of numbers for a logger, computed on a copy of
    the network.

    images: (N, C, H, W) in [0, 1], labels: (N,). Take them from the validation split: the test set must not be
        monitored during training.
    eps: radii in pixel units and `norm`, at which certified accuracy is evaluated.
    joint: bound blocks jointly, which is tighter and takes seconds per block; False takes textbook bounds.

    A call returns `clean`, for each eps `certified@NORM:EPS` (a deterministic lower bound on the accuracy under the
    best attack on these images), `lipschitz` (the l2 bound on the network), and `block/NAME` (the l2 bound on each
    block). If an operation has no bound, only `clean` is returned. Modes, gradients, buffers and the global random
    state are left unchanged.

    >>> monitor = RobustnessMonitor(torch.rand(4, 1, 2, 2), torch.zeros(4), eps=(0.1,))
    >>> sorted(monitor(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))))
    ['block/1', 'certified@l2:0.1', 'clean', 'lipschitz']
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        eps: Sequence[float],
        norm: Literal["l2", "linf"] = "l2",
        joint: bool = False,
    ) -> None:
        self.images, self.labels = images_tensor(images), labels_tensor(labels)
        if len(self.images) != len(self.labels) or not len(self.images):
            raise InputError(f"there must be a label for each image, got {len(self.images)} and {len(self.labels)}")
        self.threats = [ThreatModel(norm, one) for one in eps]
        self.norm, self.joint = norm, joint

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Measure the network as it is now, in evaluation mode."""
        with random_state_kept(), untouched(network), torch.inference_mode(False), torch.enable_grad():
            plain = materialise(network).cpu()
            for parameter in plain.parameters():
                parameter.requires_grad_(False)
            return self._measured(plain)

    def _measured(self, network: nn.Module) -> dict[str, float]:
        images, labels = self.images.cpu(), self.labels.cpu()
        report = lipschitz(network, tuple(images.shape[1:]), joint=self.joint, lower_steps=0, refuse="record")
        if report.refused:
            with torch.no_grad():
                return {"clean": _share(network(images).argmax(dim=1) == labels)}
        found = certify(network, images, norm=self.norm, report=report)
        correct = found.prediction == labels
        values = {"clean": _share(correct)}
        for threat in self.threats:
            values[f"certified@{self.norm}:{eps_words(threat.eps)}"] = _share(correct & (found.radius >= threat.eps))
        values["lipschitz"] = report.l2_upper
        return values | {f"block/{row.name}": row.upper for row in report.blocks if math.isfinite(row.upper)}


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def lightning_callback(
    monitor: RobustnessMonitor, *, every: int = 1, network: Callable[[Any], nn.Module] | None = None
) -> Any:
    """A callback for Lightning's Trainer that logs what the monitor measures at the end of training epochs.

    every: number of epochs between measurements. network: takes the classifier out of the LightningModule, such as
        `lambda module: module.model`; by default, the module itself is the classifier.
    Raises MissingExtraError if Lightning is not installed.
    """
    if every < 1:
        raise InputError(f"every must be at least 1, got {every}")
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MissingExtraError("a callback for Lightning", "lightning") from error

    class Robustness(Callback):
        """Logs the monitor's numbers under their names."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if (trainer.current_epoch + 1) % every == 0:
                pl_module.log_dict(monitor(pl_module if network is None else network(pl_module)))

    return Robustness()
