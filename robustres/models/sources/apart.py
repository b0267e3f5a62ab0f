"""Trial runs, in a separate process that may crash without harm, of files that cannot be checked by reading alone."""

import contextlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustres.errors import ModelError

# Limits of the trial: CPU seconds and bytes, in addition to several times the size of the file.
SECONDS, MEMORY, COPIES = 30, 2**31, 4
# Wall-clock seconds, for a busy machine; no network can sleep.
PATIENCE = 240
ANSWER = "answer of the trial: "


def tried_apart(path: Path, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """A shape (C, H, W) of images on which the network in a file ran; None if none was given and none was found.

    The file is a program of torch.export (.pt2) or TorchScript. The limits on memory and CPU time are those of POSIX
    (Linux; macOS does not enforce the memory limit); elsewhere a wall-clock limit applies.
    Raises ModelError if the trial reports that the file cannot be used, exceeds its limits, or crashes.
    """
    state = path.stat()
    return _tried(path.resolve(), state.st_mtime_ns, state.st_size, input_shape)


@lru_cache(maxsize=64)
def _tried(path: Path, changed: int, size: int, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    command = [sys.executable, "-m", __name__, str(path), json.dumps(input_shape)]
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"a trial run took more than {PATIENCE} seconds: it may never end") from error
    said = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(ANSWER)]
    if not said:
        raise ModelError(
            f"a trial run ended with code {done.returncode}: it computes for more than {SECONDS} seconds, needs more "
            "than "
            f"{MEMORY >> 30} GiB, or is damaged so that torch crashes"
        )
    answer: dict[str, Any] = json.loads(said[-1].removeprefix(ANSWER))
    if answer["error"] is not None:
        raise ModelError(answer["error"])
    return None if answer["shape"] is None else tuple(answer["shape"])


def limit_this_process(size: int) -> None:
    """Limit the memory and the time of this process, beyond what it has used so far, for a file of this many bytes."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = Path("/proc/self/statm")
    used = int(mapped.read_text().split()[0]) * resource.getpagesize() if mapped.exists() else 0
    largest = used + MEMORY + COPIES * size
    with contextlib.suppress(ValueError, OSError):  # a system that does not implement this limit
        resource.setrlimit(resource.RLIMIT_AS, (largest, largest))


def answered(path: Path, input_shape: tuple[int, ...] | None) -> dict[str, Any]:
    """The result of a trial of this file: {"error": why it cannot be used, or None; "shape": the image shape on which
    it ran}.
    """
    from robustres.models.sources.exported_program import run_program
    from robustres.models.sources.torchscript import reason_of, run_script

    run = run_program if path.suffix == ".pt2" else run_script
    try:
        return {"error": None, "shape": run(path, input_shape)}
    except (ModelError, RuntimeError, ValueError, OSError, EOFError, AttributeError, MemoryError) as error:
        return {"error": reason_of(error), "shape": None}


def _main() -> None:
    import torch

    import robustres.models.sources.exported_program
    import robustres.models.sources.torchscript  # noqa: F401  (before the limits)

    path, shape = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    limit_this_process(path.stat().st_size)
    answer = answered(path, None if shape is None else tuple(shape))
    sys.stdout.write(f"\n{ANSWER}{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)  # no cleanup of whatever state a damaged file left


if __name__ == "__main__":
    _main()
