"""How a module states what it is: what the certifier asks instead of looking inside."""

from typing import Protocol, runtime_checkable

from robustres.certify.maps.sector import GroupSort
from robustres.certify.proof.bound import Bound


@runtime_checkable
class HasLipschitzBound(Protocol):
    """A module whose forward takes one tensor, returns one tensor, and whose l2 Lipschitz constant it bounds itself.

    The certifier treats such a module as one node of the network: it trusts `upper` and never looks inside. The bound
    is about the map of one sample, in evaluation mode, for unbatched inputs of `input_shape`, in exact arithmetic.
    """

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """An interval around the l2 Lipschitz constant on inputs of this shape."""
        ...


@runtime_checkable
class HasSortedGroups(Protocol):
    """A module that states its own bound and sorts the channels of each position within groups (MaxMin, GroupSort).

    Inside a residual branch the certifier then bounds the block jointly; elsewhere the module counts as 1. The
    statement is tried on random inputs.
    """

    def sorted_groups(self) -> GroupSort:
        """Which channels are sorted together."""
        ...


@runtime_checkable
class HasNoCertificate(Protocol):
    """A module that the certifier cannot read as a map of one sample, and that says why.

    no_certificate: what it is and how to mend it, as it follows "no bound is known for".
    """

    no_certificate: str
