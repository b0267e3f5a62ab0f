"""`robustres evaluate`: attack and certify a model on data, and write the report."""

from robustres.cli import options, values
from robustres.cli.run import run_and_report


def evaluate(
    model: options.Model,
    data: options.Data,
    source: options.Source,
    attacking: options.Attacking,
    bounding: options.Bounding,
    running: options.Running,
    norm: options.NormOption = "linf",
    eps: options.Eps = None,
) -> None:
    """Attack and certify MODEL on DATA; write the report, the tables and summary.json.

    An interrupted run continues when the same command is given again. Under torchrun, the samples are split among the
    processes.

    Example: robustres evaluate net.onnx --data npy:cifar10-100 --mean 0.4914,0.4822,0.4465
    --std 0.2471,0.2435,0.2616 --norm linf --eps 1/255,2/255,8/255

    Example: torchrun --nproc-per-node 4 -m robustres evaluate nets:build@weights.pth --data cifar10 --data-root DIR
    """
    from robustres.evaluation import Settings

    settings = Settings(
        eps=values.budgets(norm, eps),
        **attacking.settings(),
        **bounding.settings(running.seed),
        **running.settings(),
    )
    run_and_report(model, data, settings, source, running, cache=bounding.cache, npz=attacking.save_npz)
