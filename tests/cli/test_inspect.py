"""`robustres inspect`: the folder that it writes, and its refusals."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from robustres.cli.main import commands
from robustres.dynamics import NAMES
from robustres.errors import InputError
from robustres.models import residual_net, save_checkpoint


def test_a_network_gets_a_page_and_a_table_for_every_claim(tmp_path: Path) -> None:
    network = residual_net(block="residual", depth=1, width=2, image_shape=(1, 8, 8), classes=10, pool=2)
    checkpoint = save_checkpoint(network, tmp_path / "net.safetensors")
    out = tmp_path / "out"
    arguments = ["inspect", str(checkpoint), "--limit", "4", "--textbook", "--json", "--out", str(out)]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    summary = json.loads(done.stdout)
    assert [claim["claim"] for claim in summary["claims"]] == list(NAMES)
    assert all(claim["holds"] and not claim["skipped"] for claim in summary["claims"])
    page, text = (out / "inspect.html").read_text(), (out / "inspect.md").read_text()
    for claim in summary["claims"]:
        name = claim["claim"]
        assert len(pd.read_csv(out / f"{name}.csv")) >= 1
        assert (out / "figures" / f"{name}.svg").read_text().startswith("<svg")
        assert f'id="{name}"' in page
        assert f"figures/{name}.svg" in text


def test_giving_neither_a_model_nor_a_demonstration_is_refused() -> None:
    with pytest.raises(InputError, match="--builtin all"):
        CliRunner().invoke(commands, ["inspect"], catch_exceptions=False)


def test_an_unknown_demonstration_is_refused() -> None:
    with pytest.raises(InputError, match="gradient-flow"):
        CliRunner().invoke(commands, ["inspect", "--builtin", "nothing", "--json"], catch_exceptions=False)
