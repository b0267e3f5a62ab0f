"""Conversion of a model to its network of pieces: capture, and application of the rules operation by operation."""

from dataclasses import replace

from torch import nn

# Importing these modules registers their rules.
from robustres.certify.graph import (  # noqa: F401
    rules_activation,
    rules_arithmetic,
    rules_linear,
    rules_near_an_image,
    rules_normalisation,
    rules_pooling,
    rules_radial,
    rules_shape,
    rules_written,
)
from robustres.certify.graph.capture import Captured, capture
from robustres.certify.graph.network import Node
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.maps.linear_map import Shape
from robustres.errors import UnsupportedOperationError


def read_network(model: nn.Module, input_shape: Shape, *, on_unit_domain: bool = False) -> tuple[Captured, Node]:
    """The model's graph in float64, and its logits as a network of maps, activations and merges.

    on_unit_domain: restrict the inputs to images in [0, 1]^n. Raises UnsupportedOperationError, which lists every
    operation without a rule, and ModelError for a model that cannot be captured.
    """
    captured = replace(capture(model, input_shape), on_unit_domain=on_unit_domain)
    output, refused = build_network(captured)
    if output is None:
        raise UnsupportedOperationError(refused)
    return captured, output
