"""The calls of `import robustres` that take a model in any form: a specification, a module, or a result of
`load_model`.
"""

from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from robustres import certify, training
from robustres.at_hand import images_tensor
from robustres.certify import AuditReport, LipschitzReport
from robustres.data import ImageSet, load_data
from robustres.errors import InputError, ModelError
from robustres.models import LoadedModel, load_model
from robustres.training import History, Recipe

Model = LoadedModel | nn.Module | str


@wraps(certify.lipschitz)
def lipschitz(model: Model, input_shape: Any, **settings: Any) -> LipschitzReport:
    shape = _shape(input_shape)
    return certify.lipschitz(_module(model, shape), shape, **settings)


@wraps(certify.audit)
def audit(model: Model, input_shape: Any, *, images: Any = None, **settings: Any) -> AuditReport:
    shape, starts = _shape(input_shape), None if images is None else _starts(images)
    return certify.audit(_module(model, shape), shape, images=starts, **settings)


@wraps(training.enforce)
def enforce(model: Model, *, lipschitz: float, input_shape: Any, **settings: Any) -> nn.Module:
    shape = _shape(input_shape)
    return training.enforce(_module(model, shape), lipschitz=lipschitz, input_shape=shape, **settings)


@wraps(training.train)
def train(model: Model, train_set: Any, validation_set: Any | None, recipe: Recipe, **settings: Any) -> History:
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe must be a robustres.Recipe, got {type(recipe).__name__}")
    learnt = _images(train_set, "train")
    watched = None if validation_set is None else _images(validation_set, "validation")
    return training.train(_module(model, learnt.image_shape), learnt, watched, recipe, **settings)


def _module(model: Any, shape: tuple[int, ...]) -> nn.Module:
    """The network itself: the given module object, so that training changes it."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, LoadedModel):
        return model.module
    if isinstance(model, str):
        return load_model(model, input_shape=shape).module
    raise ModelError(
        "a model must be an nn.Module, a result of load_model, or a specification such as 'net.onnx', got "
        f"{type(model).__name__}"
    )


def _images(data: Any, split: Any) -> ImageSet:
    """A data set, a specification (of which the split is used), images with labels, a Dataset or a DataLoader."""
    return data if isinstance(data, ImageSet) else load_data(data, split=split)


def _starts(given: Any) -> Tensor:
    """Only the images, from any form of images with labels, or from an array, a tensor or a list without labels."""
    if isinstance(given, str | Dataset | DataLoader | tuple):
        given = load_data(given)
    return given.images if isinstance(given, ImageSet) else images_tensor(given)


def _shape(shape: Any) -> tuple[int, ...]:
    """(C, H, W) as integers."""
    try:
        numbers = tuple(int(side) for side in shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"input_shape must be (channels, height, width) such as (3, 32, 32), got {shape!r}") from error
    if not numbers or min(numbers) < 1:
        raise InputError(f"input_shape must contain positive numbers, got {shape!r}")
    return numbers
