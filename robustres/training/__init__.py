"""robustres.training: recipes, losses and the training loop."""

from robustres.training.enforce import enforce
from robustres.training.history import Epoch, History
from robustres.training.recipe import LOSSES, Recipe
from robustres.training.recipes import RECIPES
from robustres.training.tensorboard import tensorboard_logger
from robustres.training.train import train

__all__ = ["LOSSES", "RECIPES", "Epoch", "History", "Recipe", "enforce", "tensorboard_logger", "train"]
