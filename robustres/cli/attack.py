"""`robustres attack`: only the right side of the sandwich."""

from robustres.cli import options, values
from robustres.cli.run import run_and_report


def attack(
    model: options.Model,
    data: options.Data,
    source: options.Source,
    attacking: options.Attacking,
    running: options.Running,
    norm: options.NormOption = "linf",
    eps: options.Eps = None,
) -> None:
    """Attack MODEL on DATA without certifying; works for any network.

    Example: robustres attack net.onnx --data npy:images --norm l2 --eps 0.5 --attacks pgd --steps 50
    """
    from robustres.evaluation import Settings

    settings = Settings(
        eps=values.budgets(norm, eps), certify=False, **attacking.settings(), **running.settings()
    )  # fmt: skip
    run_and_report(model, data, settings, source, running, npz=attacking.save_npz)
