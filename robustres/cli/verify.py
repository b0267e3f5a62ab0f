"""`robustres verify`: one instance of the neural network verification competition (VNN-COMP)."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli.options import Json

Network = Annotated[Path | None, typer.Option("--onnx", help="The network, an ONNX file.")]
Statement = Annotated[Path | None, typer.Option("--vnnlib", help="The property: VNN-LIB 1 or 2, plain or .gz.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=1e-3,
        help="Time limit in seconds (approximate); default 60, or that of each line of the instances.",
    ),
]
Instances = Annotated[
    Path | None, typer.Option("--instances", help="A CSV file of network,property,timeout with paths relative to it.")
]


def verify(
    onnx: Network = None,
    vnnlib: Statement = None,
    timeout: Timeout = None,
    instances: Instances = None,
    json: Json = False,
) -> None:
    """Decide whether a property's inputs can give a forbidden output: print sat with an input and its output, unsat,
    unknown or timeout.

    With --instances, print one line for each: network,property,result,seconds.

    Example: robustres verify --onnx resnet_2b.onnx --vnnlib 0.vnnlib.gz --timeout 60
    """
    from robustres.errors import InputError

    if instances is not None and onnx is None and vnnlib is None:
        _every(instances, timeout, json)
    elif instances is None and onnx is not None and vnnlib is not None:
        _one(onnx, vnnlib, timeout or 60.0, json)
    else:
        raise InputError("give --onnx and --vnnlib for one instance, or --instances for a file of them")


def _one(onnx: Path, vnnlib: Path, timeout: float, json: bool) -> None:
    from robustres.evaluation.verify import verify as decide
    from robustres.results import json_text

    verdict = decide(onnx, vnnlib, timeout=timeout)
    if json:
        example = None if verdict.example is None else [list(map(float, values)) for values in verdict.example]
        typer.echo(json_text({"result": verdict.result, "example": example}), nl=False)
        return
    typer.echo(verdict.result)
    if verdict.assignment:
        typer.echo(verdict.assignment)


def _every(instances: Path, timeout: float | None, json: bool) -> None:
    from time import monotonic

    from robustres.evaluation.verify import read_instances
    from robustres.evaluation.verify import verify as decide
    from robustres.results import json_text

    rows = []
    for one in read_instances(instances):
        begun = monotonic()
        result = decide(one.network, one.statement, timeout=timeout or one.timeout).result
        rows.append((str(one.network), str(one.statement), result, round(monotonic() - begun, 2)))
        if not json:
            typer.echo(",".join(map(str, rows[-1])))
    if json:
        names = ("onnx", "vnnlib", "result", "seconds")
        typer.echo(json_text({"instances": [dict(zip(names, row, strict=True)) for row in rows]}), nl=False)
