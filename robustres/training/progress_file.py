"""The state of a run after each epoch, in one file that is written completely or not at all."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustres.errors import InputError
from robustres.results import write_atomically

FILE = "train-state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write everything that a resumed run needs."""
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(folder / FILE, content.getvalue())


def has_state(folder: str | Path) -> bool:
    """Whether a run, finished or interrupted, has left its state there."""
    return (Path(folder) / FILE).is_file()


def load_best(model: nn.Module, folder: str | Path) -> int:
    """Load into the model the best weights so far of a run that is in progress or was interrupted; returns their
    epoch.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise InputError(f"{folder} holds no run; its first epoch may not have ended yet")
    state = _read(file)
    model.load_state_dict(state["best"])
    model.eval()
    return int(state["best_epoch"])


def load_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an interrupted run, None if there is none; raises InputError if it belongs to another run.

    identity: what determines the run (recipe, data, architecture); differences are named.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    state = _read(file)
    before = state["identity"]
    different = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
    if different:
        raise InputError(
            f"{folder} holds a run that differs in {', '.join(different)}; choose another folder, or remove "
            f"{file} to start again"
        )
    return state


def _read(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not {"identity", "best", "best_epoch"} <= state.keys():
            raise LookupError
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"cannot read {file} ({type(error).__name__}); remove it to start again") from error
    return state
