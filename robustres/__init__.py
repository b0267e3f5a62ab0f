"""How robust is a residual network: certified radius <= true radius <= distance of the best adversarial example.

    import robustres

    model = robustres.load_model("net.onnx", mean=(0.5,), std=(0.25,))
    data = robustres.load_data("npy:my-images")
    run = robustres.evaluate(model, data, "runs/mine", robustres.Settings(eps={"linf": (8 / 255,)}))
    print(run.summary["clean"], run.summary["certificates"])

The names below are imported on first use, so that `import robustres` and `robustres --help` answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustres.attacks import make_attack
    from robustres.certify import lipschitz
    from robustres.data import load_data
    from robustres.evaluation import Settings, evaluate
    from robustres.models import load_model, residual_net
    from robustres.reports import write_report
    from robustres.threat import ThreatModel

__version__ = "0.1.0"
__all__ = [
    "Settings",
    "ThreatModel",
    "__version__",
    "evaluate",
    "lipschitz",
    "load_data",
    "load_model",
    "make_attack",
    "residual_net",
    "write_report",
]

_HOME = {
    "Settings": "robustres.evaluation",
    "ThreatModel": "robustres.threat",
    "evaluate": "robustres.evaluation",
    "lipschitz": "robustres.certify",
    "load_data": "robustres.data",
    "load_model": "robustres.models",
    "make_attack": "robustres.attacks",
    "residual_net": "robustres.models",
    "write_report": "robustres.reports",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'robustres' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
