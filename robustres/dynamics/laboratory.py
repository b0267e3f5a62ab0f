"""All claims by name: demonstrated on the built-in networks, or examined on a given network."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from robustres.data import ImageSet, load_data
from robustres.dynamics.demonstrations.continuous import continuous
from robustres.dynamics.demonstrations.correction import correction
from robustres.dynamics.demonstrations.expansion import expansion
from robustres.dynamics.demonstrations.gradient_flow import gradient_flow
from robustres.dynamics.demonstrations.information import information
from robustres.dynamics.demonstrations.second_task import second_task
from robustres.dynamics.demonstrations.smoothness import smoothness
from robustres.dynamics.measures.claim import Claim
from robustres.dynamics.measures.dissection import Dissection, dissect
from robustres.dynamics.observations.own_continuous import continuous_of
from robustres.dynamics.observations.own_correction import correction_of
from robustres.dynamics.observations.own_expansion import expansion_of
from robustres.dynamics.observations.own_gradient_flow import gradient_flow_of
from robustres.dynamics.observations.own_information import information_of
from robustres.dynamics.observations.own_second_task import second_task_of
from robustres.dynamics.observations.own_smoothness import smoothness_of
from robustres.dynamics.small_networks.parts import Parts
from robustres.errors import InputError

DEMONSTRATIONS: dict[str, Callable[[Parts | None], Claim]] = {
    "gradient-flow": gradient_flow,
    "information": information,
    "correction": correction,
    "smoothness": smoothness,
    "jacobians": expansion,
    "continuous": continuous,
    "second-task": second_task,
}
NAMES = tuple(DEMONSTRATIONS)
Progress = Callable[[str, int, int], None]
OBSERVATIONS: dict[str, Callable[[Dissection, ImageSet], Claim]] = {
    "gradient-flow": gradient_flow_of,
    "information": information_of,
    "correction": correction_of,
    "smoothness": smoothness_of,
    "jacobians": expansion_of,
    "continuous": continuous_of,
    "second-task": second_task_of,
}


def demonstrate(
    names: Sequence[str] = NAMES, data: Parts | None = None, *, progress: Progress | None = None
) -> Iterator[Claim]:
    """Demonstrate claims on the built-in networks, one after another; InputError lists the known names.

    data: images for training and measurement, by default the embedded digits.
    progress: called with (name of a claim, 0, 1) when work on it begins, and (name, 1, 1) when it ends.
    """
    if unknown := [name for name in names if name not in DEMONSTRATIONS]:
        raise InputError(f"no demonstration is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return (_watched(name, partial(DEMONSTRATIONS[name], data), progress) for name in names)


def inspect_model(
    model: nn.Module, data: ImageSet | Any, *, joint: bool = True, progress: Progress | None = None
) -> Iterator[Claim | tuple[str, str]]:
    """Examine a given network, claim by claim; (name, reason) for a claim that does not apply to it.

    joint: bound its blocks jointly, which is tighter and slower. progress: as in `demonstrate`; before that, it is
    called with the number of the network's pieces that are bounded ("blocks"). Raises UnsupportedOperationError for a
    network that the certifier does not support; the model is left as it was.
    """
    images = data if isinstance(data, ImageSet) else load_data(data)
    network = dissect(
        model, images.image_shape, joint=joint, progress=None if progress is None else partial(progress, "blocks")
    )
    for name, observe in OBSERVATIONS.items():
        try:
            yield _watched(name, partial(observe, network, images), progress)
        except InputError as reason:
            yield name, str(reason)


def _watched(name: str, work: Callable[[], Claim], progress: Progress | None) -> Claim:
    """Run the work and return its claim, reporting its start and end."""
    tell = progress or (lambda stage, done, total: None)
    tell(name, 0, 1)
    claim = work()
    tell(name, 1, 1)
    return claim
