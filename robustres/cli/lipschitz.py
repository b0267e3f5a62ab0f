"""`robustres lipschitz`: bound a network block by block, without data."""

from typing import Annotated

import typer

from robustres.cli import console, options
from robustres.cli.run import print_blocks

Shape = Annotated[str, typer.Option("--input-shape", help="Channels, height, width: 3,32,32")]


def lipschitz(
    model: options.Model,
    input_shape: Shape,
    mean: options.Mean = None,
    std: options.Std = None,
    joint: options.Joint = True,
    effort: options.Effort = None,
    download: options.Download = False,
    json: options.Json = False,
) -> None:
    """Bound the l2 Lipschitz constant of MODEL and of each of its blocks, from above and from below.

    Example: robustres lipschitz net.onnx --input-shape 3,32,32
    """
    from robustres.certify import lipschitz as bound
    from robustres.models import load_model
    from robustres.results import block_records, json_text

    shape = parse_shape(input_shape)
    loaded = load_model(model, input_shape=shape, download=download, **options.statistics(mean, std))
    with console.progress_bar(quiet=json) as progress:
        progress("bound", 0, 1)
        report = bound(loaded.module, shape, **options.thoroughness(joint, effort))
        progress("bound", 1, 1)
    blocks = block_records(report.to_frame())
    if json:
        summary = {"norm": "l2", "upper": report.upper, "lower": report.lower, "blocks": blocks}
        typer.echo(json_text(summary), nl=False)
    else:
        print_blocks(blocks, report.upper, report.lower)


def parse_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width."""
    from robustres.errors import InputError

    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--input-shape must be channels,height,width such as 3,32,32, got {text!r}") from error
    return channels, height, width
