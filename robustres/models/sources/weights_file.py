"""Plain weight files for a network that is built elsewhere. Reading them never executes code."""

import logging
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.networks.materialise import plain_names, plainly
from robustres.models.sources.archive import Archive
from robustres.models.sources.checkpoint import load_tensors, read_tensors

log = logging.getLogger(__name__)

# Prefixes in the names of weights of a network that was wrapped for several GPUs or compiled, wholly or in parts.
WRAPPERS = frozenset({"module", "_orig_mod"})
# Counters that an averaged copy has besides its weights.
COUNTERS = frozenset({"n_averaged"})
# Names that training scripts give to averaged copies and helpers: used if the file has no other weights that fit.
SECOND_CHOICE = ("ema", "average", "avg", "swa", "teacher", "momentum", "target", "best")
# The message with which torch's reader of plain weights refuses objects.
UNPICKLED = re.compile(r"GLOBAL (\S+) was not an allowed global")
DEEPEST = 4  # dictionaries inside dictionaries


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill the module from a .safetensors file or a file written by torch.save (.pt, .pth), exactly; otherwise raise
    ModelError.

    The weights may be in dictionaries inside the file, as training scripts store them ({"net": ..., "epoch": 3}), and
    their names may have the prefix of a wrapper (`module.`, `_orig_mod.`, `model.`). Of several sets that fit, the one
    that is not an averaged copy is used, which is logged. If the module derives weights from others (weight
    normalisation, pruning, parametrisations) and the file has the plain ones, as `save_model` writes them, the module
    uses those.
    """
    if not file.is_file():
        raise ModelError(f"there is no weights file {file}; check the path")
    found = {"": read_tensors(file)} if file.suffix == ".safetensors" else _state_dicts(_read(file))
    if not found:
        raise ModelError(f"{file} holds no state_dict; save model.state_dict() with torch.save or safetensors")
    fitting = _fitting(found, list(module.state_dict()))
    if not fitting and (fitting := _fitting(found, plain_names(module))):
        plainly(module)
    if not fitting:
        load_tensors(module, max(found.values(), key=len), str(file))  # the error states what is missing
        return
    place = min(fitting, key=_rank)
    if len(fitting) > 1:
        others = ", ".join(repr(other) for other in fitting if other != place)
        log.warning("%s holds several networks that fit; the weights in %r are taken, not %s", file, place, others)
    load_tensors(module, fitting[place], f"{file} ({place})" if place else str(file))


def _fitting(found: Mapping[str, Mapping[str, Tensor]], expected: list[str]) -> dict[str, dict[str, Tensor]]:
    """The sets of weights with these names, by their location in the file."""
    named = {place: _by_expected_name(tensors, expected) for place, tensors in found.items()}
    return {place: tensors for place, tensors in named.items() if tensors is not None}


def _rank(place: str) -> int:
    """0 for the weights themselves, 1 for an averaged copy of them."""
    return int(any(word in place.lower() for word in SECOND_CHOICE))


def _by_expected_name(tensors: Mapping[str, Tensor], expected: list[str]) -> dict[str, Tensor] | None:
    """The tensors by the names in `expected`, without the prefixes of wrappers; None if they do not fit.

    Counters of batches or averages may be missing or superfluous.
    """
    wanted = {_unwrapped(name): name for name in expected}
    own = {name: value for name, value in tensors.items() if name not in COUNTERS}
    if len(wanted) < len(expected):  # the network's own names differ only in the omitted words
        wanted = {name: name for name in expected}
    else:
        own = {_unwrapped(name): value for name, value in own.items()}
    if len(own) < len(tensors.keys() - COUNTERS):
        return None
    necessary = {name for name in wanted if not name.endswith("num_batches_tracked")}
    while not necessary <= own.keys() <= wanted.keys():
        heads = {name.partition(".")[0] for name in own if "." in name}
        if len(heads) != 1 or not all("." in name for name in own):
            return None
        own = {name.partition(".")[2]: value for name, value in own.items()}
    return {wanted[name]: value for name, value in own.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _state_dicts(content: Any, place: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """The tensors of every dictionary in the contents of a file, by the keys that lead to it."""
    found: dict[str, dict[str, Tensor]] = {}
    if isinstance(content, Mapping) and depth <= DEEPEST:
        if own := {str(name): value for name, value in content.items() if isinstance(value, Tensor)}:
            found[place] = own
        for key, value in content.items():
            found |= _state_dicts(value, f"{place}.{key}" if place else str(key), depth + 1)
    return found


def _read(file: Path) -> Any:
    """Read with weights_only: torch itself refuses a pickle that would execute code."""
    try:
        if zipfile.is_zipfile(file):
            Archive(file, "plain weights")  # refuses archives that would unpack to more than the size of the file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors that are refused later
            return torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # any error of the unpickler or the archive for a damaged file
        named = UNPICKLED.search(str(error))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if reason.startswith("Weights only load failed"):  # followed by advice that does not apply here
            reason = "it was not written by torch.save from tensors, or it is damaged"
        if named:
            reason = f"it contains objects of {named[1]}, which can only be restored by running code from the file"
        raise ModelError(
            f"cannot read {file} as plain weights ({reason}); save model.state_dict() with torch.save or safetensors"
        ) from error
