"""The state of a run after each epoch, in one file that appears complete or not at all."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from robustres.errors import InputError
from robustres.results import write_atomically

FILE = "train-state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write everything that a resumed run needs."""
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(folder / FILE, content.getvalue())


def load_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an interrupted run, None where there is none; InputError where it belongs to another run.

    identity: what decides the run (recipe, data, architecture); differences are named.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        before = state["identity"]
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"cannot read {file} ({type(error).__name__}); remove it to start again") from error
    different = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
    if different:
        raise InputError(
            f"{folder} holds a run that differs in {', '.join(different)}; choose another folder, or remove "
            f"{file} to start again"
        )
    return state
