"""`robustres data`: check a data set and describe its contents."""

from typing import Annotated

import typer

from robustres.cli import console, options


def data(
    spec: Annotated[str, typer.Argument(help=options.DATA_FORMS)],
    reading: options.Reading,
    json: options.Json = False,
) -> None:
    """Read and check DATA as every command does: shape, range, labels, classes, digest.

    Example: robustres data npy:my-images
    """
    from robustres.results import json_text

    images = reading.images(spec)
    counts = images.labels.bincount(minlength=images.classes).tolist()
    smallest, largest = images.extremes()
    facts = {
        **images.facts(),
        "samples": len(images),
        "image_shape": list(images.image_shape),
        "smallest": smallest,
        "largest": largest,
        "classes": dict(zip(images.class_names, counts, strict=True)),
    }
    if json:
        typer.echo(json_text(facts), nl=False)
        return
    shape = " x ".join(map(str, images.image_shape))
    console.output.print(f"{images.source}: {len(images)} images of {shape}, pixels in "
                         f"[{facts['smallest']:.3g}, {facts['largest']:.3g}], sha256 {images.sha256[:12]}")  # fmt: skip
    console.print_table(
        "Samples by class",
        ("class", "samples"),
        [(name, str(n)) for name, n in zip(images.class_names, counts, strict=True)],
    )
