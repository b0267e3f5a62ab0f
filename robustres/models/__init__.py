"""robustres.models: residual blocks and networks, and models loaded from files and factories."""

from robustres.models.blocks.by_name import BLOCKS
from robustres.models.constraints.activations import MaxMin
from robustres.models.networks.materialise import materialise, settle
from robustres.models.networks.mean import MeanNet
from robustres.models.networks.normalised import Normalised
from robustres.models.networks.presets import PRESETS, preset
from robustres.models.networks.residual_net import Architecture, ResidualNet, build, residual_net
from robustres.models.sources.checkpoint import load_checkpoint, save_checkpoint
from robustres.models.sources.load_model import LoadedModel, load_model
from robustres.models.sources.save_model import save_model
from robustres.moved import answer_to_old_names

__all__ = [
    "BLOCKS",
    "PRESETS",
    "Architecture",
    "LoadedModel",
    "MaxMin",
    "MeanNet",
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

answer_to_old_names(__name__)
