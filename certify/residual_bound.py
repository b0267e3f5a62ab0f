"""The branch of a residual block as linear maps and activations in turn, as the joint bound wants it."""

from robustres.certify.bound import JointBound
from robustres.certify.joint import branch_bound
from robustres.certify.linear_map import Identity, LinearMap
from robustres.certify.network import Elementwise, Linear
from robustres.certify.regions import Region


def residual_bound(found: Region, *, effort: float) -> JointBound | None:
    """The smallest bound of a block with one nonlinear branch; None where the branch is not linear and elementwise."""
    turns = alternating(found)
    if found.shortcut is None or turns is None:
        return None
    layers, slopes = turns
    return branch_bound(found.shortcut, layers, slopes=slopes, effort=effort)


def alternating(found: Region) -> tuple[list[LinearMap], list[tuple[float, float]]] | None:
    """Linear maps and the slopes of the activations between them; None where something else stands in the branch."""
    if len(found.branches) != 1:
        return None
    layers: list[LinearMap] = []
    slopes: list[tuple[float, float]] = []
    shape = found.entry.shape
    for node in found.branches[0].nodes:
        if isinstance(node.piece, Linear):
            layers.append(node.piece.map)
        elif isinstance(node.piece, Elementwise):
            if len(layers) == len(slopes):
                layers.append(Identity(shape))
            slopes.append(node.piece.slopes)
        else:
            return None
        shape = node.shape
    if len(layers) == len(slopes):
        layers.append(Identity(shape))
    return layers, slopes
