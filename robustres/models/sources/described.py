"""Networks built by another library from a description in a repository, with the weights stored beside it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from robustres.errors import ModelError
from robustres.models.sources.weights_file import load_weights


def described_network(name: str, library: str, kind: str, build: Callable[[], nn.Module], weights: Path) -> nn.Module:
    """The network created by `build`, in its own precision, with the weights of the file.

    name: of the repository; library, kind: the library and its name for this network. Nothing is allocated for a
    description that is larger than its weights. Raises ModelError if it cannot be built as described.
    """
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in build().parameters())
        if size > weights.stat().st_size:
            raise ModelError(f"hf:{name} describes a network of {size} weights, more than its file has bytes")
        model = build()
    except ModelError:
        raise
    except Exception as error:  # any error of the library about the file
        raise ModelError(f"{library} cannot build the {kind!r} of hf:{name} ({said_by(error)})") from error
    load_weights(model, weights)
    return model


def said_by(error: Exception) -> str:
    """The first line of the message of an error, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
