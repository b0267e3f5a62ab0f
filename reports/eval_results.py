"""A run's number for a benchmark that the Hugging Face hub hosts, as the hub's `.eval_results` files."""

import json
import re
from pathlib import Path

from robustres.errors import InputError
from robustres.reports.run import load_run
from robustres.results import Requirement, write_atomically

FORM = re.compile(r"(?P<dataset>[\w.-]+/[\w.-]+):(?P<task>[\w.-]+)=(?P<measure>[^=<>]+)")


def write_eval_results(folder: Path | str, entry: str) -> Path:
    """Write .eval_results/TASK.yaml into a run folder; copy that folder into the repository of the model.

    entry: DATASET:TASK=MEASURE, such as org/benchmark:l2=robust@l2:0.5. DATASET and TASK are the identifiers that the
        hub gave to the benchmark, which a run does not know; MEASURE is clean, robust@NORM:EPS (what all attacks leave:
        an upper bound of the accuracy under the best attack), certified@NORM:EPS (a lower bound of it), or the name of
        an attack or a certificate in place of these words. The value is in per cent.
    Raises InputError where the words are of another form or the run did not count that measure.
    """
    found = FORM.fullmatch(entry)
    if found is None:
        raise InputError(
            f"a result for the hub is DATASET:TASK=MEASURE such as org/benchmark:l2=robust@l2:0.5, got {entry!r}"
        )
    measure, run = Requirement.read(f"{found['measure']}>=0"), load_run(Path(folder))
    share = measure.met(run.summary)["share"]
    if share is None:
        raise InputError(f"the run did not count {found['measure']}; `summary.json` has what it counted")
    words = str(measure).partition(">=")[0]
    lines = [
        "- dataset:",
        f"    id: {json.dumps(found['dataset'])}",
        f"    task_id: {json.dumps(found['task'])}",
        f"  value: {round(100 * share, 4)}",
        f"  notes: {json.dumps(f'{words} of {run.total} images in per cent, measured by robustres')}",
    ]
    path = Path(folder) / ".eval_results" / f"{found['task']}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path
