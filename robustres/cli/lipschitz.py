"""`robustres lipschitz`: bound a network block by block, without data."""

from dataclasses import asdict
from typing import Annotated

import typer

from robustres.cli import console, options
from robustres.cli.run import print_blocks

STARTS = 9  # images that the estimates from below start at

Shape = Annotated[
    str | None, typer.Option("--input-shape", help="Channels, height, width: 3,32,32; needed without --data.")
]
Images = Annotated[
    str | None,
    typer.Option("--data", help="Images to start the estimates from below at, as in evaluate; default: random ones."),
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option("--what-if", help="BLOCK=FACTOR: the bounds if that block's branch were multiplied; repeatable."),
]


def lipschitz(
    model: options.Model,
    input_shape: Shape = None,
    data: Images = None,
    mean: options.Mean = None,
    std: options.Std = None,
    joint: options.Joint = True,
    effort: options.Effort = None,
    download: options.Download = False,
    what_if: WhatIf = None,
    data_root: options.DataRoot = None,
    json: options.Json = False,
) -> None:
    """Bound the l2 Lipschitz constant of MODEL and of each of its blocks, from above and from below.

    Example: robustres lipschitz net.onnx --input-shape 3,32,32 --what-if layer1.0=0.5
    """
    from robustres.certify import lipschitz as bound
    from robustres.data import load_data
    from robustres.errors import InputError
    from robustres.models import load_model
    from robustres.results import block_records, json_text

    if data is None and input_shape is None:
        raise InputError("bounds need --input-shape such as 3,32,32, or --data DATA whose images have it")
    images = None if data is None else load_data(data, root=data_root)
    shape = images.image_shape if images is not None and input_shape is None else parse_shape(input_shape or "")
    loaded = load_model(model, input_shape=shape, download=download, **options.statistics(mean, std))
    with console.progress_bar(quiet=json) as progress:
        progress("bound", 0, 1)
        starts = None if images is None else images.spaced(STARTS)
        report = bound(loaded.module, shape, images=starts, **options.thoroughness(joint, effort))
        progress("bound", 1, 1)
        supposed = [report.what_if(*_supposition(text)) for text in what_if or ()]
    blocks = block_records(report.to_frame())
    if json:
        summary = {"norm": "l2", "upper": report.upper, "lower": report.lower, "blocks": blocks}
        typer.echo(json_text({**summary, "what_if": [asdict(row) for row in supposed]}), nl=False)
        return
    print_blocks(blocks, report.upper, report.lower)
    if supposed:
        numbers = [(row.block_upper, row.network_upper, row.radius_gain) for row in supposed]
        rows = [
            (row.name, f"{row.factor:g}", *(f"{number:.4g}" for number in found), row.method)
            for row, found in zip(supposed, numbers, strict=True)
        ]
        header = ("block", "branch times", "its bound", "network's bound", "radii times", "bound by")
        console.print_table("What if", header, rows)


def _supposition(text: str) -> tuple[str, float]:
    """A block and a factor."""
    from robustres.errors import InputError
    from robustres.threat import parse_number

    name, found, factor = text.rpartition("=")
    if not found:
        raise InputError(f"--what-if must be BLOCK=FACTOR such as layer1.0=0.5, got {text!r}")
    return name, parse_number(factor)


def parse_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width."""
    from robustres.errors import InputError

    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--input-shape must be channels,height,width such as 3,32,32, got {text!r}") from error
    return channels, height, width
