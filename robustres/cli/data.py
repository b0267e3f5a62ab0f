"""`robustres data`: check a data set and say what is in it."""

from typing import Annotated

import typer

from robustres.cli import console, options


def data(
    spec: Annotated[str, typer.Argument(help=options.DATA_FORMS)],
    data_root: options.DataRoot = None,
    split: options.Split = "test",
    limit: options.Limit = None,
    download: options.Download = False,
    json: options.Json = False,
) -> None:
    """Read and check DATA as every command does: shape, range, labels, classes, digest.

    Example: robustres data npy:my-images
    """
    from robustres.data import load_data
    from robustres.results import json_text

    images = load_data(spec, root=data_root, split=split, limit=limit, download=download)  # type: ignore[arg-type]
    counts = images.labels.bincount(minlength=images.classes).tolist()
    smallest, largest = images.extremes()
    facts = {
        "source": images.source,
        "sha256": images.sha256,
        "samples": len(images),
        "image_shape": list(images.image_shape),
        "split": images.split,
        "split_seed": images.split_seed,
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
