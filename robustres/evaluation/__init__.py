"""Attack and certify a data set: the two sides of the sandwich, sample by sample."""

from robustres.evaluation.rechecked import recheck
from robustres.evaluation.replayed import replay
from robustres.evaluation.run import Run, attack, evaluate
from robustres.evaluation.settings import CONVENTIONAL_EPS, Settings
from robustres.evaluation.task import Progress

__all__ = ["CONVENTIONAL_EPS", "Progress", "Run", "Settings", "attack", "evaluate", "recheck", "replay"]
