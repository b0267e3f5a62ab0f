"""`robustres lipschitz`: bound a network block by block, without data."""

import math
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustres.cli import console, options, values
from robustres.cli.run import bound as rounded_up
from robustres.cli.run import estimate

if TYPE_CHECKING:
    from torch import nn

    from robustres.certify import LipschitzReport

STARTS = 9  # number of images at which the estimates from below start

Images = Annotated[
    str | None,
    typer.Option(
        "--data", help="Images at which the estimates from below start, as in evaluate; default: random images."
    ),
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option(
        "--what-if", help="BLOCK=FACTOR: the bounds if that block's branch were multiplied by FACTOR; repeatable."
    ),
]


def lipschitz(
    model: options.Model,
    source: options.Source,
    input_shape: options.InputShape = None,
    data: Images = None,
    joint: options.Joint = True,
    effort: options.Effort = None,
    whole_effort: options.WholeEffort = None,
    domain: options.Domain = "all",
    what_if: WhatIf = None,
    json: options.Json = False,
) -> None:
    """Bound the l2 Lipschitz constant of MODEL and of each of its blocks, from above and from below.

    Example: robustres lipschitz net.onnx --input-shape 3,32,32 --what-if layer1.0=0.5
    """
    from robustres.certify import lipschitz as bound
    from robustres.results import json_text

    loaded, shape, images = source.load_with_shape(model, data, input_shape)
    suppositions = [_supposition(text) for text in what_if or ()]
    with console.progress_bar(quiet=json) as progress:
        if suppositions:
            _require_names(loaded.module, shape, [name for name, _ in suppositions])
        blocks = partial(progress, "blocks")
        starts = None if images is None else images.spaced(STARTS)
        limits = values.thoroughness(joint, effort) | {"whole_effort": whole_effort}
        report = bound(loaded.module, shape, images=starts, domain=domain, progress=blocks, **limits)  # type: ignore[arg-type]
        supposed = [report.what_if(name, factor) for name, factor in suppositions]
    if json:
        summary = {"norm": "l2", "upper": report.upper, "lower": report.lower, "blocks": _records(report)}
        typer.echo(json_text({**summary, "what_if": [asdict(row) for row in supposed]}), nl=False)
        return
    _print_ledger(report)
    if supposed:
        numbers = [(row.block_upper, row.network_upper, row.radius_gain) for row in supposed]
        rows = [
            (row.name, f"{row.factor:g}", *(f"{number:.4g}" for number in found), row.method)
            for row, found in zip(supposed, numbers, strict=True)
        ]
        header = ("block", "branch times", "its bound", "network's bound", "radii times", "bound by")
        console.print_table("What if", header, rows)


def _records(report: "LipschitzReport") -> list[dict[str, Any]]:
    """The rows of a run's table, with all candidate bounds, the tightness and the seconds of each block."""
    from robustres.results import block_records

    return [
        record
        | {
            "candidates": dict(row.candidates),
            "tightness": row.tightness if math.isfinite(row.tightness) else None,
            "seconds": row.seconds,
        }
        for record, row in zip(block_records(report.to_frame()), report.blocks, strict=True)
    ]


def _print_ledger(report: "LipschitzReport") -> None:
    """Print every block with both sides and its textbook and joint bounds; --json has the other candidates."""
    columns = {
        "block": [row.name for row in report.blocks],
        "|S|": [rounded_up(row.shortcut) for row in report.blocks],
        "|F|": [rounded_up(row.branch) for row in report.blocks],
        "|S| + |F|": [rounded_up(row.textbook) for row in report.blocks],
        "joint": [rounded_up(row.joint) for row in report.blocks],
        "bound": [rounded_up(row.upper) for row in report.blocks],
        "estimate": [estimate(row.lower) for row in report.blocks],
        "floor": [estimate(row.floor) for row in report.blocks],
        "ratio": [f"{row.tightness:.2f}" for row in report.blocks],
        "s": [f"{row.seconds:.1f}" for row in report.blocks],
    }
    console.print_table(
        "l2 Lipschitz constant, block by block: S x + F(x)",
        list(columns),
        list(zip(*columns.values(), strict=True)),
        caption="floor: no bound that uses only the range of the slopes can be lower; ratio: bound / estimate.\n"
        f"whole network: bound {rounded_up(report.upper)}, estimate from below {estimate(report.lower)} "
        f"({report.explanation()})",
    )


def _require_names(module: "nn.Module", shape: tuple[int, ...], names: list[str]) -> None:
    """Raise InputError for a block that does not exist, found by the quickest bound before the thorough one begins."""
    from robustres.certify import lipschitz as bound

    quick = bound(module, shape, joint=False, seconds=0.01, lower_steps=0)
    for name in names:
        quick.block(name)


def _supposition(text: str) -> tuple[str, float]:
    """Parse a block and a factor."""
    from robustres.errors import InputError
    from robustres.threat import parse_number

    name, found, factor = text.rpartition("=")
    if not found:
        raise InputError(f"--what-if must be BLOCK=FACTOR such as layer1.0=0.5, got {text!r}")
    return name, parse_number(factor)
