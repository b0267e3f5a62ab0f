"""benchmarks/train_gpu.py at a small size on the CPU: what it writes, and that a finished run is not trained again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_gpu.py"


@pytest.mark.slow
def test_the_gpu_script_plans_trains_and_certifies(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(folder / "labels.npy", np.arange(count) % 10)
    settings = ["--data", f"npy:{tmp_path / 'data'}", "--minutes", "0.02", "--scales", "0.25,0.5", "--epochs", "1"]
    place = ["--batch-size", "20", "--device", "cpu", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *settings, *place],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    assert "widths x" in outputs[0]
    assert "epoch" not in outputs[1].split("{")[0]
    facts = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert 0 <= facts["test"]["l2 108/255"] <= facts["test"]["l2 36/255"] <= facts["test"]["clean"] <= 1
    names = {"model.safetensors", "curve.csv", "recipe.toml", "plan.json"}
    assert names <= {file.name for file in (tmp_path / "run").iterdir()}
