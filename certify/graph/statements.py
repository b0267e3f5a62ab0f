"""Protocols by which a module states its properties, which the certifier uses instead of analysing the module."""

from typing import Protocol, runtime_checkable

from robustres.certify.maps.sector import GroupSort
from robustres.certify.proof.bound import Bound


@runtime_checkable
class HasLipschitzBound(Protocol):
    """A module with one input and one output tensor that bounds its own l2 Lipschitz constant.

    The certifier treats such a module as one node of the network: it trusts `upper` and does not analyse the module.
    The bound is for the map of one sample, in evaluation mode, for unbatched inputs of `input_shape`, in exact
    arithmetic.
    """

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """An interval around the l2 Lipschitz constant on inputs of this shape."""
        ...


@runtime_checkable
class HasSortedGroups(Protocol):
    """A module that states its own bound and sorts the channels of each position within groups (MaxMin, GroupSort).

    Inside a residual branch the certifier then bounds the block jointly; elsewhere the module has the constant 1. The
    statement is checked on random inputs.
    """

    def sorted_groups(self) -> GroupSort:
        """The groups of channels that are sorted."""
        ...


@runtime_checkable
class HasNoCertificate(Protocol):
    """A module that is not a map of single samples, with an explanation.

    no_certificate: the reason and the remedy, as a continuation of "no bound is known for".
    """

    no_certificate: str
