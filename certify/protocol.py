"""How a module states its own bound: what the certifier asks instead of looking inside."""

from typing import Protocol, runtime_checkable

from robustres.certify.bound import Bound


@runtime_checkable
class HasLipschitzBound(Protocol):
    """A module whose forward takes one tensor, returns one tensor, and whose l2 Lipschitz constant it bounds itself.

    The certifier treats such a module as one node of the network: it trusts `upper` and never looks inside. The bound
    is about the map of one sample, in evaluation mode, for unbatched inputs of `input_shape`, in exact arithmetic.
    """

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """An interval around the l2 Lipschitz constant on inputs of this shape."""
        ...
