"""The errors that users see: one base class; each subclass also inherits from the built-in exception it refines.

A message is one sentence: what is wrong, which value was given, what is allowed and how to fix it.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class RobustresError(Exception):
    """Base class of every error that robustres raises deliberately."""


class InputError(RobustresError, ValueError):
    """A value given by the caller is not allowed."""


class DataError(InputError):
    """Images or labels that cannot be used: wrong range, wrong shape, not finite, unknown class."""


class StorageError(RobustresError, OSError):
    """A file of a run cannot be written: no space, no permission, a missing folder. What was written is kept."""


class ModelError(InputError):
    """A model that cannot be used: it cannot be loaded, has a wrong output shape, or outputs that are not finite."""


class PrecisionError(RobustresError, RuntimeError):
    """A certificate was requested under arithmetic that no rounding bound covers (TF32, autocast)."""


class MissingExtraError(RobustresError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs the extra `{extra}`; install it with: pip install 'robustres[{extra}]'")


@dataclass(frozen=True)
class Refusal:
    """An operation for which there is no rule.

    path: its place in the network, as a dotted name of `named_modules` ("" is the network itself).
    operation: its name and which of its features is not covered.
    """

    path: str
    operation: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.path or 'the top level of the network'}"


class UnsupportedOperationError(RobustresError, NotImplementedError):
    """The certifier encountered operations without a rule; all of them are listed in `refused`."""

    def __init__(self, refused: Sequence[Refusal]) -> None:
        self.refused = tuple(refused)
        listed = "; ".join(str(refusal) for refusal in self.refused)
        super().__init__(
            f"no certificate: no bound is known for {listed}; replace the operation, or let the module "
            "state its own bound through robustres.certify.HasLipschitzBound"
        )


class SandwichViolationError(RobustresError, AssertionError):
    """An adversarial example lies inside a certified radius: a defect of the certificate, never of the data."""

    def __init__(self, index: int, certificate: str, radius: float, attack: str, distance: float) -> None:
        self.index, self.certificate, self.radius = index, certificate, radius
        self.attack, self.distance = attack, distance
        super().__init__(
            f"sample {index}: {attack} found an adversarial example at distance {distance:.9g}, inside the radius "
            f"{radius:.9g} that `{certificate}` certified; the certificate is defective: please report this run"
        )


class DefectiveBoundError(RobustresError, AssertionError):
    """Two computations that must agree contradict each other: a defect of robustres, never of the model or the data."""
