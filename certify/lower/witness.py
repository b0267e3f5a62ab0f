"""A pair of inputs that shows how fast a network can change, with a ratio rounded down so that it can refute claims."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustres.certify.graph.float64_copy import float64_copy
from robustres.certify.graph.own_type import as_written, own_type
from robustres.certify.graph.single_function import AGREEMENT, ChangingAnswerError, close
from robustres.certify.lower.jacobian import norms
from robustres.errors import ModelError
from robustres.numerics import gamma

# The unit roundoff of float64 is 2^29 times smaller than that of float32. The error charged is that observed in
# float32, divided by only this number.
_FINER = 2.0**19


@dataclass(frozen=True, eq=False)
class Witness:
    """Two inputs and the network's outputs for them, in float64.

    ratio: at or below |f(other) - f(x)| / |other - x| in exact arithmetic; a lower estimate of the Lipschitz constant.
    """

    x: Tensor
    other: Tensor
    answer: Tensor
    other_answer: Tensor
    ratio: float


class Measured:
    """A module as a function of float64 batches with an estimate of its rounding error.

    The error of a float64 forward pass is taken to be at most 2^-19 of the deviation that the same pass shows in
    float32, where the unit roundoff is 2^29 times larger: a margin of 1000 over proportionality. This allowance is
    measured; no certificate depends on it.

    Raises ModelError if the module computes in a narrower type internally, regardless of the type of its input, or is
    not a function of it.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        wide = float64_copy(module)
        self._wide = as_written(wide, own_type(module))
        self._narrow = copy.deepcopy(wide).to(torch.float32)
        with torch.no_grad(), _TypesSeen() as seen:
            answer = self._wide(example.clone())
        if not isinstance(answer, Tensor):
            raise ModelError(f"an audited module must return one tensor, got {type(answer).__name__}")
        with torch.no_grad():
            again = self._wide(example.clone())
        if not close(answer, again, AGREEMENT):
            raise ChangingAnswerError("the module's answer changes from call to call, so that it has no constant")
        if seen.narrow:
            raise ModelError(
                f"the module computes {', '.join(sorted(seen.narrow))} in a type narrower than float64 although its "
                "input is float64, so that no ratio of it is exact enough; remove the cast"
            )

    def __call__(self, x: Tensor) -> Tensor:
        answer: Tensor = self._wide(x.clone())  # the module may overwrite its input
        return answer

    def allowance(self, x: Tensor, answer: Tensor) -> Tensor:
        """(B,): bound on the difference between the norm of `answer` at x and that of the exact answer."""
        rounded = x.to(torch.float32)
        deviation = norms(self._narrow(rounded.clone()).to(torch.float64) - self(rounded.to(torch.float64)))
        repeated = norms(self(x) - answer)
        return deviation / _FINER + repeated + gamma(64) * norms(answer)


def safe_ratios(function: Measured, x: Tensor, other: Tensor) -> Tensor:
    """(B,): at or below |f(other) - f(x)| / |other - x|, with the allowance subtracted; 0 where nothing is certain."""
    with torch.no_grad():
        answer, other_answer = function(x), function(other)
        allowance = function.allowance(x, answer) + function.allowance(other, other_answer)
        slack = gamma(x[0].numel() + answer[0].numel() + 16)
        change = norms(other_answer - answer) * (1 - slack) - allowance
        ratio = change / (norms(other - x) * (1 + slack))
    return torch.nan_to_num(ratio, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0.0)


def as_witness(function: Measured, x: Tensor, other: Tensor) -> Witness:
    """The pair (*input shape) as a witness, evaluated once more in a batch of its own."""
    pair = torch.stack([x, other])
    ratio = float(safe_ratios(function, pair[:1], pair[1:])[0])
    with torch.no_grad():
        answers = torch.cat([function(pair[:1]), function(pair[1:])]).cpu()
    return Witness(pair[0].cpu(), pair[1].cpu(), answers[0], answers[1], ratio)


class _TypesSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operations that compute numbers narrower than float64 from values of other types, unlike those that
    create or pass on constants in a narrower type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrow: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        exact = (_is_narrow(value) or value.dtype == torch.bool for value in given)
        if any(map(_is_narrow, tree_leaves(result))) and not all(exact):
            self.narrow.add(str(func))
        return result


def _is_narrow(value: Any) -> bool:
    """Whether this is a tensor of floating-point numbers narrower than float64."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64
