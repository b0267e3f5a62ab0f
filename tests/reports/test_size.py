"""The size of pages, and the cost of reports on large runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustres.reports import write_report
from robustres.results import RunFolder


def colourful_examples(count: int) -> list[dict[str, Any]]:
    """Noise, which PNG cannot compress, for every eps of the fixture."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        for norm, eps in (("l2", 72 / 255), ("linf", 8 / 255)):
            clean = random.random((3, 32, 32)).astype(np.float32)
            keys = {"index": index, "attack": "pgd", "norm": norm, "eps": eps}
            images = {"clean": clean.tobytes(), "adversarial": (clean + np.float32(0.01)).tobytes()}
            rows.append(keys | {"channels": 3, "height": 32, "width": 32} | images)
    return rows


@pytest.mark.slow
def test_ten_thousand_samples_make_a_page_under_three_megabytes(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "ten", count=10_000)
    RunFolder(folder).write_part("examples", "0000", colourful_examples(100))
    assert write_report(folder).stat().st_size < 3e6


@pytest.mark.slow
def test_sixty_thousand_samples_cost_under_20_seconds_and_2_gib(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "sixty", count=60_000)
    code = (
        "import resource, sys, time; from robustres.reports import write_report; write_report(sys.argv[1]);"
        "print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 20
    assert kilobytes < 2 * 1024**2
