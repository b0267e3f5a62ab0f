"""Backward rows of a network that is too large for the time per image are given up."""

import pytest
import torch
from torch import nn

from robustres.certify.local import local_radii as module
from robustres.certify.local import search
from robustres.certify.local.intermediate import OutOfTimeError, bounded
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.sets import Region


def test_rows_that_take_too_long_are_given_up_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    made = local_program(nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                       nn.Linear(16, 3)), (1, 2, 2))  # fmt: skip
    image = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    with pytest.raises(OutOfTimeError):
        bounded(made, Region.ball(image, 0.4, "linf"), left=lambda: 0.0)
    (found,) = local_radii(made, image, norm="linf", seconds=0.5)
    assert found.radius > 0
    assert "given up" not in caplog.text
    monkeypatch.setattr(module, "PATIENCE", 0)
    monkeypatch.setattr(module, "_first_eps", lambda *_: 0.4)
    monkeypatch.setattr(search, "FIRST", 1)
    (found,) = local_radii(made, image, norm="linf", seconds=1e-3)
    assert (found.radius, found.certificate) == (0.0, None)
    assert "--seconds-per-image" in caplog.text
