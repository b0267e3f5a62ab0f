"""robustres.models: residual blocks and networks, and models loaded from files and factories."""

from robustres.models.activations import MaxMin
from robustres.models.blocks import BLOCKS
from robustres.models.checkpoint import load_checkpoint, save_checkpoint
from robustres.models.load_model import LoadedModel, load_model
from robustres.models.materialise import materialise, settle
from robustres.models.normalised import Normalised
from robustres.models.presets import PRESETS, preset
from robustres.models.residual_net import Architecture, ResidualNet, build, residual_net
from robustres.models.save_model import save_model

__all__ = [
    "BLOCKS",
    "PRESETS",
    "Architecture",
    "LoadedModel",
    "MaxMin",
    "Normalised",
    "ResidualNet",
    "build",
    "load_checkpoint",
    "load_model",
    "materialise",
    "preset",
    "residual_net",
    "save_checkpoint",
    "save_model",
    "settle",
]
