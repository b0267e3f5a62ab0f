"""Candidate bounds of a residual block S x + F(x) that are tighter than |S| + |F|."""

from collections.abc import Callable, Iterator

from robustres.certify.bound import Bound
from robustres.certify.fold import added, composed
from robustres.certify.linear_map import Identity, LinearMap, Scaled
from robustres.certify.linf_norm import all_hold
from robustres.certify.network import Elementwise, Linear
from robustres.certify.regions import Region
from robustres.numerics import rounded_up

NormOf = Callable[[LinearMap], Bound]
Branch = list[LinearMap | Elementwise]


def residual_candidates(
    found: Region, norm_of: NormOf, *, seconds: float | None, delta: float | None
) -> Iterator[tuple[str, Bound]]:
    """Name and bound of every candidate for a block with one nonlinear branch, none where the branch is opaque."""
    assert found.shortcut is not None
    branch = alternating(found)
    if branch is None:
        return
    yield "loop", loop_bound(found.shortcut, branch, norm_of)


def alternating(found: Region) -> Branch | None:
    """The branch as linear maps and activations in turn, starting and ending with a linear map."""
    parts: Branch = []
    shape = found.entry.shape
    for node in found.branches[0].nodes:
        if isinstance(node.piece, Linear):
            parts.append(node.piece.map)
        elif isinstance(node.piece, Elementwise):
            if not parts or isinstance(parts[-1], Elementwise):
                parts.append(Identity(shape))
            parts.append(node.piece)
        else:
            return None
        shape = node.shape
    if isinstance(parts[-1], Elementwise):
        parts.append(Identity(shape))
    return parts


def loop_bound(shortcut: LinearMap, branch: Branch, norm_of: NormOf) -> Bound:
    """Every activation written as its middle slope plus a rest of half the width (loop transformation).

    phi(z) = m z + h psi(z), m = (a + b)/2, h = (b - a)/2, psi 1-Lipschitz: taking the last activation of the branch
    apart leaves the same branch with a linear map in its place, and a rest bounded by the product of the norms.
    """
    rest: list[Bound] = []
    errors: list[float] = []
    while len(branch) > 1:
        *inner, before, activation, after = branch
        assert isinstance(activation, Elementwise)
        assert isinstance(before, LinearMap)
        assert isinstance(after, LinearMap)
        low, high = activation.slopes
        maps = [part for part in branch if isinstance(part, LinearMap)]
        norms = [norm_of(part) for part in maps]
        slopes = [part.constant for part in inner if isinstance(part, Elementwise)]
        error = (high - low) / 2
        for factor in (*(norm.upper for norm in norms), *slopes):
            error = rounded_up(error * factor, 2)
        errors.append(error)
        rest.extend(norms)
        branch = [*inner, composed([before, Scaled((low + high) / 2, Identity(before.out_shape)), after])]
    only = branch[0]
    assert isinstance(only, LinearMap)
    straight = norm_of(added([shortcut, only]))
    upper = rounded_up(sum(errors) + straight.upper, len(errors) + 2)
    return Bound(0.0, upper, "loop", all_hold([straight, *rest]))
