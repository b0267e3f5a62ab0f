"""robustres.data: images in [0, 1] with labels, from the embedded digits, MNIST, image folders and NumPy arrays."""

from robustres.data.image_set import ImageSet
from robustres.data.load import load_data
from robustres.data.splits import SPLITS, Split, stratified_parts

__all__ = ["SPLITS", "ImageSet", "Split", "load_data", "stratified_parts"]
