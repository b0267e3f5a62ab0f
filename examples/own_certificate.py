"""Your own certificate takes part in evaluation, resuming, the sandwich check, reports and comparisons.

From the command line: robustres evaluate MODEL --data DATA --certificate lipschitz,own_certificate:RowNorms
"""

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robustres
from robustres.certify import NETWORK, Guarantee, RadiusColumn


@dataclass(frozen=True)
class RowNorms:
    """Radii of a linear classifier: the margin over the norm of the difference between two rows of its matrix.

    The column says to which function the radii refer (NETWORK: attacks on the network are checked against them), in
    which norm they are measured, and what they guarantee. A radius must be rounded down; here a millionth of it and of
    the logits is subtracted.
    """

    name: str = "row norms"

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        linear = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        logits = x.double().flatten(1) @ weight.T + bias
        top, answer = logits.max(dim=1)
        slopes = (weight[answer][:, None] - weight[None]).norm(dim=2)
        margins = top[:, None] - logits - 1e-6 * logits.abs().amax(dim=1, keepdim=True)
        ratios = (margins / slopes).scatter(1, answer[:, None], torch.inf)
        radius = ratios.amin(dim=1).clamp_min(0) * (1 - 1e-6)
        return RadiusColumn(radius, answer, (self.name,) * len(x), NETWORK, "l2", Guarantee())


def main() -> None:
    """Certify forty digits with the product of the bounds and with RowNorms."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    digits = robustres.load_data("digits", limit=40)
    settings = robustres.Settings(eps={"l2": (0.05, 0.1)}, attacks=("pgd",), certificate=("lipschitz", RowNorms()))
    with tempfile.TemporaryDirectory() as folder:
        run = robustres.evaluate(network, digits, folder, settings)
        robustres.report(folder)
        for row in run.summary["certificates"]:
            print(f"{row['certificate']} at {row['eps']:g}: at least {row['accuracy']:.1%} (a lower bound)")


if __name__ == "__main__":
    main()
