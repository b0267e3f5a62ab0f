"""Check every law for many programs, in one process that does not stop at failures.

    OMP_NUM_THREADS=1 python -m tests.certify.fuzz.many FIRST COUNT [exact]

checks the programs of the seeds FIRST, FIRST + 1, ... and prints a line for each that breaks a law, and for every batch
of 100 what became of them. The lines of a failing seed are shrunk by `test_programs.check_seed(seed)`.
"""

import gc
import sys
import time
import traceback
import warnings
from collections import Counter

import torch

from robustres.certify.graph.registry import RULES
from tests.certify.fuzz.fast_export import one_table
from tests.certify.fuzz.grammar import Recorded, drawn, numbers_of
from tests.certify.fuzz.oracles import FoundError, check
from tests.certify.fuzz.test_programs import check_exactly

BATCH = 100


def outcome_of(seed: int, met: Counter[str], exact: bool) -> str:
    """The outcome of the program; a violation is printed."""
    try:
        if exact:
            return check_exactly(seed)
        outcome = check(*drawn(Recorded(numbers_of(seed))), seed)
    except FoundError as error:
        _say(f"FOUND seed {seed}: {error}")
        return f"FOUND {error.law}"
    except Exception as error:
        _say(f"FOUND seed {seed}: {type(error).__name__} {error} {traceback.format_exc()[-600:]!r}")
        return "FOUND in the check"
    met.update(outcome.operations & set(RULES))
    return outcome.kind if outcome.kind in ("bounded", "refused", "vacuous") else "not a model"


def main(first: int, count: int, exact: bool) -> None:
    """Run batch after batch; the totals are those of the printed lines."""
    torch.set_num_threads(1)
    with one_table(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.freeze()  # imported objects need not be scanned repeatedly, which takes an eighth of the time
        for start in range(first, first + count, BATCH):
            clock, met = time.process_time(), Counter[str]()
            seeds = range(start, min(start + BATCH, first + count))
            kinds = Counter(outcome_of(seed, met, exact) for seed in seeds)
            used = time.process_time() - clock
            _say(f"BATCH {start} {len(seeds)} programs {used:.1f} CPU s {dict(kinds)}")
            _say(f"MET {start} {dict(met)}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "exact" in sys.argv[3:])
