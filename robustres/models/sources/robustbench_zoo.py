"""Networks of RobustBench's zoo, by the names of its leaderboards."""

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.sources.described import said_by
from robustres.models.sources.weights_file import load_weights

# Where RobustBench itself stores downloads, below the working directory.
FOLDER = Path("models")


def robustbench_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """The network DATASET/THREAT/NAME of RobustBench, such as cifar10/Linf/Wong2020Fast; it takes images in [0, 1].

    The weights come from the given file, else from models/DATASET/THREAT/NAME.pt, where RobustBench stores them.
    download: whether RobustBench may download them to that file.
    Raises MissingExtraError without the extra `robustbench`; ModelError if there is no such network or no weights.
    """
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.utils import load_model
    except ImportError as error:
        if find_spec("robustbench") is None:
            raise MissingExtraError("loading a network of RobustBench", "robustbench") from error
        raise ModelError(
            f"RobustBench cannot be imported ({said_by(error)}); install what it needs with: "
            "pip install 'robustres[robustbench]'"
        ) from error
    dataset, threat, entry = _entry(name, model_dicts)
    if weights is not None:
        try:
            model: nn.Module = entry["model"]()
        except Exception as error:  # any error of third-party constructors
            raise ModelError(f"RobustBench cannot build {name} ({said_by(error)})") from error
        load_weights(model, weights)
        return model
    file = FOLDER / dataset / threat / f"{name.rpartition('/')[2]}.pt"
    if not download and not file.is_file() and not Path(f"{file}_m0.pt").is_file():
        raise ModelError(
            f"the weights of robustbench:{name} are not in {file}; ask for the download with --download "
            f"(download=True), or give a file of yours: robustbench:{name}@weights.pt"
        )
    try:
        loaded: nn.Module = load_model(name.rpartition("/")[2], FOLDER, dataset, threat)
    except Exception as error:  # of the download, the unpickler, or the constructors
        raise ModelError(f"RobustBench cannot load {name} ({said_by(error)}); is this machine online?") from error
    return loaded


def _entry(name: str, zoo: Any) -> tuple[str, str, Any]:
    """Data set, threat model and the entry of the zoo; raises ModelError with a list of the known ones."""
    tables = {(data.value, threat.value): models for data, table in zoo.items() for threat, models in table.items()}
    dataset, threat, model = name.split("/") if name.count("/") == 2 else ("", "", name)
    if (dataset, threat) not in tables:
        known = ", ".join("/".join(key) for key in tables)
        raise ModelError(
            f"a network of RobustBench is robustbench:DATASET/THREAT/NAME with one of {known}, got {name!r}"
        )
    models = tables[dataset, threat]
    if model not in models:
        near = get_close_matches(model, models, n=1, cutoff=0.0)
        raise ModelError(f"RobustBench has no {model!r} for {dataset}/{threat}; did you mean {', '.join(near)}?")
    return dataset, threat, models[model]
