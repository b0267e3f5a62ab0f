"""`robustres evaluate`: attack and certify a model on data, and write the report."""

from typing import Annotated

import typer

from robustres.cli import options
from robustres.cli.run import run_and_report

AttackNames = Annotated[str, typer.Option("--attacks", help="Comma-separated attack names.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of PGD.")]


def evaluate(
    model: options.Model,
    data: options.Data,
    norm: options.NormOption = "linf",
    eps: options.Eps = None,
    attacks: AttackNames = "fgsm,pgd",
    steps: Steps = 20,
    diagnose: options.Diagnose = 0,
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
    """Attack and certify MODEL on DATA; write the report, the tables and summary.json.

    Example: robustres evaluate net.onnx --data npy:cifar10-100 --mean 0.4914,0.4822,0.4465
    --std 0.2471,0.2435,0.2616 --norm linf --eps 1/255,2/255,8/255
    """
    from robustres.evaluation import Settings

    settings = Settings(
        eps=options.budgets(norm, eps),
        attacks=tuple(attacks.split(",")),
        attack_settings={"pgd": {"steps": steps}},
        batch_size=batch_size,
        seed=seed,
        **options.thoroughness(joint, effort),
        certificate=options.certificate(certificate),
        smoothing=options.smoothing(smoothing, smoothing_samples, seed),
        diagnose=diagnose,
        keep_going=keep_going,
    )
    run_and_report(
        model, data, settings, mean=mean, std=std, data_root=data_root, limit=limit, device=device, out=out,
        overwrite=overwrite, cache=cache, json=json,
    )  # fmt: skip
