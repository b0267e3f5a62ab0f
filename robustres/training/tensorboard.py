"""Epochs as curves in TensorBoard, if that extra is installed."""

from collections.abc import Callable
from pathlib import Path

from robustres.errors import MissingExtraError
from robustres.training.history import Epoch


def tensorboard_logger(folder: str | Path) -> Callable[[Epoch], None]:
    """A function for `on_epoch` that writes loss, clean and certified accuracy into the folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("logging to TensorBoard", "tensorboard") from error
    writer = SummaryWriter(str(folder))

    def log(epoch: Epoch) -> None:
        for name in ("loss", "clean", "certified"):
            value = getattr(epoch, name)
            if value == value:
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    return log
