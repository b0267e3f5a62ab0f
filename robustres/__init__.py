"""How robust is a residual network: certified radius <= true radius <= distance of the best adversarial example.

    import robustres

    model = robustres.load_model("net.onnx", mean=(0.5,), std=(0.25,))
    data = robustres.load_data("npy:my-images")
    run = robustres.evaluate(model, data, "runs/mine", robustres.Settings(eps={"linf": (8 / 255,)}))
    print(run.summary["clean"], run.certificates)  # a dictionary, a data frame

Every command of the command line corresponds to one call: attack, audit, compare, demo, enforce, evaluate, inspect,
lipschitz, report, train; only certify is found as `robustres.certify.certify`, since `robustres.certify` is a package
(docs/python.md). The names below are imported on first use, so that `import robustres` and `robustres --help` respond
at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustres.attacks import make_attack
    from robustres.calls import audit, enforce, lipschitz, train
    from robustres.cli.demo import demonstrate as demo
    from robustres.data import load_data
    from robustres.dynamics import inspect_model as inspect
    from robustres.evaluation import Settings, attack, evaluate, recheck, replay
    from robustres.models import load_model, residual_net, save_model
    from robustres.reports import write_comparison as compare
    from robustres.reports import write_report
    from robustres.reports import write_report as report
    from robustres.threat import ThreatModel
    from robustres.training import Recipe

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "Settings",
    "ThreatModel",
    "__version__",
    "attack",
    "audit",
    "compare",
    "demo",
    "enforce",
    "evaluate",
    "inspect",
    "lipschitz",
    "load_data",
    "load_model",
    "make_attack",
    "recheck",
    "replay",
    "report",
    "residual_net",
    "save_model",
    "train",
    "write_report",
]

# Public name -> the module in which it is defined, and its name there.
_HOME = {
    "Recipe": ("robustres.training", "Recipe"),
    "Settings": ("robustres.evaluation", "Settings"),
    "ThreatModel": ("robustres.threat", "ThreatModel"),
    "attack": ("robustres.evaluation", "attack"),
    "audit": ("robustres.calls", "audit"),
    "compare": ("robustres.reports", "write_comparison"),
    "demo": ("robustres.cli.demo", "demonstrate"),
    "enforce": ("robustres.calls", "enforce"),
    "evaluate": ("robustres.evaluation", "evaluate"),
    "inspect": ("robustres.dynamics", "inspect_model"),
    "lipschitz": ("robustres.calls", "lipschitz"),
    "load_data": ("robustres.data", "load_data"),
    "load_model": ("robustres.models", "load_model"),
    "make_attack": ("robustres.attacks", "make_attack"),
    "recheck": ("robustres.evaluation", "recheck"),
    "replay": ("robustres.evaluation", "replay"),
    "report": ("robustres.reports", "write_report"),
    "residual_net": ("robustres.models", "residual_net"),
    "save_model": ("robustres.models", "save_model"),
    "train": ("robustres.calls", "train"),
    "write_report": ("robustres.reports", "write_report"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'robustres' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
