"""`robustres certify`: only the left side of the sandwich."""

from robustres.cli import options, values
from robustres.cli.run import run_and_report


def certify(
    model: options.Model,
    data: options.Data,
    source: options.Source,
    bounding: options.Bounding,
    running: options.Running,
    norm: options.NormOption = "l2",
    eps: options.Eps = None,
) -> None:
    """Certify MODEL on DATA without attacking: a radius for every sample, certified accuracy at every eps.

    Example: robustres certify runs/demo/constrained/model.safetensors --data digits --eps 0.25,0.5
    """
    from robustres.evaluation import Settings

    counted = values.budgets(norm, eps, certified=True)
    settings = Settings(eps=counted, attacks=(), **bounding.settings(running.seed), **running.settings())
    run_and_report(model, data, settings, source, running, cache=bounding.cache)
