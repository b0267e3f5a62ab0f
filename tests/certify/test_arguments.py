"""Arguments of a wrong type or range raise InputError with their name; nothing of Python's or torch's own escapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustres.certify import RandomisedSmoothing, Search, audit, certify, lipschitz
from robustres.errors import InputError

MODEL, SHAPE = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2)
WRONG: tuple[Any, ...] = ("a", -1, float("nan"), True, [1], object(), {}, b"x", (1, 2))
CALLS: dict[Callable[..., Any], tuple[dict[str, Any], tuple[str, ...]]] = {
    lipschitz: (
        {"model": MODEL, "input_shape": SHAPE},
        ("effort", "whole_effort", "seconds", "delta", "lower_steps", "generator", "store"),
    ),
    certify: ({"model": MODEL, "x": torch.rand(2, *SHAPE)}, ("report", "batch_size")),
    audit: ({"model": MODEL, "input_shape": SHAPE, "claimed": 3.0}, ("restarts", "tolerance", "search", "effort")),
    Search: ({}, ("rounds", "lanczos_steps", "batch_size", "ascent_steps", "seed")),
    RandomisedSmoothing: ({"sigma": 0.5}, ("estimation_samples", "batch_size", "seed")),
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_argument_at_fault_is_named(call: Callable[..., Any]) -> None:
    given, names = CALLS[call]
    for name in names:
        for value in WRONG:
            with pytest.raises(InputError, match=f"^{name} (must|is)"):
                call(**given, **{name: value})
