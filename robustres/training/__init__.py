"""robustres.training: recipes, losses and the training loop."""

from robustres.training.enforce import enforce
from robustres.training.history import Epoch, History
from robustres.training.monitor import RobustnessMonitor, lightning_callback
from robustres.training.plan import Plan, plan_of
from robustres.training.progress_file import has_state, load_best
from robustres.training.recipe import LOSSES, Recipe
from robustres.training.recipes import RECIPES
from robustres.training.tensorboard import tensorboard_logger
from robustres.training.train import train

__all__ = [
    "LOSSES",
    "RECIPES",
    "Epoch",
    "History",
    "Plan",
    "Recipe",
    "RobustnessMonitor",
    "enforce",
    "has_state",
    "lightning_callback",
    "load_best",
    "plan_of",
    "tensorboard_logger",
    "train",
]
