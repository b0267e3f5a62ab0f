"""`torchrun -m robustres evaluate` as a user runs it: from another folder, interrupted and restarted."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robustres.evaluation.lock import locked
from robustres.models import residual_net, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 2600  # six parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, images, and the run of a single process."""
    folder = tmp_path_factory.mktemp("stranger")
    network = residual_net(block="residual", depth=1, width=4, image_shape=(1, 8, 8), classes=10, pool=2)
    save_checkpoint(network, folder / "model.safetensors")
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "data" / "images.npy", generator.random((SAMPLES, 8, 8, 1), dtype=np.float32))
    np.save(folder / "data" / "labels.npy", np.arange(SAMPLES) % 10)
    done = started([sys.executable, *command("one")], folder)
    assert done.wait() == 0, (folder / "said").read_text()
    return folder


def command(out: str) -> list[str]:
    words = "-m robustres evaluate model.safetensors --data npy:data --norm l2 --eps 0.05,0.1 --fast --steps 40"
    words += " --textbook"
    return [*words.split(), "--out", out]


def torchrun(processes: int, out: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *command(out)]


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Run in a folder outside the repository, with only the paths from the environment of this process."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w") as said:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True)


def digests(folder: Path) -> dict[str, str]:
    files = [*(folder / "parts").iterdir(), folder / "summary.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_command_gives_the_same_run_for_every_number_of_processes(processes: int, folder: Path) -> None:
    done = started(torchrun(processes, f"k{processes}"), folder)
    assert done.wait() == 0, (folder / "said").read_text()
    assert digests(folder / f"k{processes}") == digests(folder / "one")
    assert (folder / "said").read_text().count("report: ") == 1
    assert (folder / f"k{processes}" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_command_continues_where_it_was_interrupted(end: signal.Signals, folder: Path) -> None:
    out = folder / end.name
    job = started(torchrun(2, end.name), folder)
    while not list(out.glob("parts/00*.json")):
        assert job.poll() is None, (folder / "said").read_text()
        time.sleep(0.002)
    os.killpg(job.pid, end)
    assert job.wait() != 0
    finished = set(out.glob("parts/00*.json"))
    assert not (out / "summary.json").exists()
    again = started(torchrun(2, end.name), folder)
    assert again.wait() == 0, (folder / "said").read_text()
    assert 0 < len(finished) < len(list(out.glob("parts/00*.json")))
    assert digests(out) == digests(folder / "one")


@pytest.mark.slow
def test_a_folder_in_use_is_refused_in_one_sentence_by_every_process(folder: Path) -> None:
    with locked(folder / "held"):
        refused = started(torchrun(2, "held"), folder)
        assert refused.wait() != 0
    said = (folder / "said").read_text()
    assert said.count("held is in use by process") == 2
    assert "[rank" not in said
