"""`robustres attack`: the right side of the sandwich alone."""

from robustres.cli import options
from robustres.cli.evaluate import AttackNames, Steps
from robustres.cli.run import run_and_report


def attack(
    model: options.Model,
    data: options.Data,
    norm: options.NormOption = "linf",
    eps: options.Eps = None,
    attacks: AttackNames = "fgsm,pgd",
    steps: Steps = 20,
    diagnose: options.Diagnose = 0,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    keep_going: options.KeepGoing = False,
    json: options.Json = False,
) -> None:
    """Attack MODEL on DATA without certifying; works for any network.

    Example: robustres attack net.onnx --data npy:images --norm l2 --eps 0.5 --attacks pgd --steps 50
    """
    from robustres.evaluation import Settings

    settings = Settings(
        eps=options.budgets(norm, eps),
        attacks=tuple(attacks.split(",")),
        attack_settings={"pgd": {"steps": steps}},
        certify=False,
        batch_size=batch_size,
        seed=seed,
        diagnose=diagnose,
        keep_going=keep_going,
    )
    run_and_report(
        model, data, settings, mean=mean, std=std, data_root=data_root, limit=limit, device=device, out=out,
        overwrite=overwrite, json=json,
    )  # fmt: skip
