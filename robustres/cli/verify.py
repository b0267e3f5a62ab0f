"""`robustres verify`: one instance of the verification competition."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli.options import Json

Network = Annotated[Path, typer.Option("--onnx", help="The network, an ONNX file.")]
Statement = Annotated[Path, typer.Option("--vnnlib", help="The property: VNN-LIB 1, plain or .gz.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1e-3, help="Seconds, a guide.")]


def verify(onnx: Network, vnnlib: Statement, timeout: Timeout = 60.0, json: Json = False) -> None:
    """Print sat with an input and its output, unsat, unknown or timeout: can a forbidden output occur in the box?

    Example: robustres verify --onnx resnet_2b.onnx --vnnlib 0.vnnlib.gz --timeout 60
    """
    from robustres.evaluation.verify import verify as decide
    from robustres.results import json_text

    verdict = decide(onnx, vnnlib, timeout=timeout)
    if json:
        example = None if verdict.example is None else [list(map(float, values)) for values in verdict.example]
        typer.echo(json_text({"result": verdict.result, "example": example}), nl=False)
        return
    typer.echo(verdict.result)
    if verdict.example is not None:
        words = [f"({letter}_{i} {float(value)!r})" for letter, values in zip("XY", verdict.example, strict=True)
                 for i, value in enumerate(values)]  # fmt: skip
        typer.echo("(" + "\n".join(words) + ")")
