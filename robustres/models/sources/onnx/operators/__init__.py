"""One small function per ONNX operator, following its specification."""

from robustres.models.sources.onnx.operators import (
    activations,
    arithmetic,
    casts,
    convolutions,
    indexing,
    logic,
    matrices,
    normalisations,
    paddings,
    poolings,
    reductions,
    resizing,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "casts",
    "convolutions",
    "indexing",
    "logic",
    "matrices",
    "normalisations",
    "paddings",
    "poolings",
    "reductions",
    "resizing",
    "shapes",
]
