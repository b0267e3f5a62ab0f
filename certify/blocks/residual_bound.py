"""The branch of a residual block as alternating linear maps and activations, the form required by the joint bound."""

from robustres.certify.blocks.joint_bound import NormOf, branch_bound
from robustres.certify.blocks.parallel_paths import Region
from robustres.certify.graph.network import Elementwise, Linear, Node, Opaque
from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.maps.sector import Slopes
from robustres.certify.proof.bound import JointBound


def residual_bound(found: Region, *, effort: float, norm_of: NormOf) -> JointBound | None:
    """The smallest bound of a block with one nonlinear branch; None if the branch contains anything other than linear
    maps, elementwise activations and sorts of channels.

    norm_of: a deterministic bound on the norm of a linear map.
    """
    turns = alternating(found)
    if found.shortcut is None or turns is None:
        return None
    layers, slopes = turns
    return branch_bound(found.shortcut, layers, slopes=slopes, effort=effort, norm_of=norm_of)


def alternating(found: Region) -> tuple[list[LinearMap], list[Slopes]] | None:
    """Linear maps and the activations between them; None if the branch contains anything else."""
    if len(found.branches) != 1:
        return None
    layers: list[LinearMap] = []
    slopes: list[Slopes] = []
    shape = found.entry.shape
    for node in found.branches[0].nodes:
        activation = _activation(node)
        if isinstance(node.piece, Linear):
            pending = layers.pop() if len(layers) > len(slopes) else Identity(shape)
            layers.append(composed([pending, node.piece.map]))
        elif activation is not None:
            if len(layers) == len(slopes):
                layers.append(Identity(shape))
            slopes.append(activation)
        else:
            return None
        shape = node.shape
    if len(layers) == len(slopes):
        layers.append(Identity(shape))
    return layers, slopes


def _activation(node: Node) -> Slopes | None:
    if isinstance(node.piece, Elementwise):
        return node.piece.slopes
    return node.piece.sorts if isinstance(node.piece, Opaque) else None
