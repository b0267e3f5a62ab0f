"""The parametrisation behind `enforce`: training can continue, and the operator norm never exceeds the budget."""

from torch import Tensor, nn

from robustres.models.constraints.operator_norm import Geometry, OperatorNorm


class CappedNorm(nn.Module):
    """W -> W min(1, budget / |W|), |W| the true operator norm: an estimate during training, a bound once settled.

    Dense weights (out, in) are treated as 1 x 1 convolutions.
    """

    def __init__(self, geometry: Geometry, budget: float) -> None:
        super().__init__()
        self.operator = OperatorNorm(geometry)
        self.budget = budget

    def forward(self, weight: Tensor) -> Tensor:
        capped: Tensor = weight * (self.budget / self.operator(_as_kernel(weight))).clamp_max(1.0)
        return capped

    def right_inverse(self, weight: Tensor) -> Tensor:
        self.operator.warm_up(_as_kernel(weight))
        return weight

    def settle(self, weight: Tensor) -> None:
        """Divide by a bound from now on."""
        self.operator.settle(_as_kernel(weight))


def _as_kernel(weight: Tensor) -> Tensor:
    return weight[..., None, None] if weight.ndim == 2 else weight
