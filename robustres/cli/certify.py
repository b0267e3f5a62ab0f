"""`robustres certify`: the left side of the sandwich alone."""

from robustres.cli import options
from robustres.cli.run import run_and_report


def certify(
    model: options.Model,
    data: options.Data,
    norm: options.NormOption = "l2",
    eps: options.Eps = None,
    mean: options.Mean = None,
    std: options.Std = None,
    joint: options.Joint = True,
    effort: options.Effort = None,
    certificate: options.Certificate = "lipschitz",
    smoothing: options.Smoothing = None,
    smoothing_samples: options.SmoothingSamples = 10_000,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    cache: options.Cache = True,
    keep_going: options.KeepGoing = False,
    json: options.Json = False,
) -> None:
    """Certify MODEL on DATA without attacking: a radius for every sample, certified accuracy at every eps.

    Example: robustres certify runs/demo/constrained/model.safetensors --data digits --eps 0.25,0.5
    """
    from robustres.evaluation import Settings

    settings = Settings(
        eps=options.budgets(norm, eps),
        attacks=(),
        batch_size=batch_size,
        seed=seed,
        **options.thoroughness(joint, effort),
        certificate=options.certificate(certificate),
        smoothing=options.smoothing(smoothing, smoothing_samples, seed),
        keep_going=keep_going,
    )
    run_and_report(
        model, data, settings, mean=mean, std=std, data_root=data_root, limit=limit, device=device, out=out,
        overwrite=overwrite, cache=cache, json=json,
    )  # fmt: skip
