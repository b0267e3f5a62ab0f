"""robustres.data: images in [0, 1] with labels, read batch by batch from where they are stored."""

from robustres.data.image_set import ImageSet
from robustres.data.load import load_data
from robustres.data.pixels import Pixels
from robustres.data.read_ahead import read_ahead
from robustres.data.splits import SPLITS, Split, stratified_parts

__all__ = ["SPLITS", "ImageSet", "Pixels", "Split", "load_data", "read_ahead", "stratified_parts"]
