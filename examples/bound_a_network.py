"""Bound your own residual network, block by block, and certify images with it.

Run: python examples/bound_a_network.py
"""

import torch
from torch import Tensor, nn

import robustres
from robustres.certify import certify


class Block(nn.Module):
    """An ordinary residual block: x + F(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def main() -> None:
    """Print the ledger and the radii of the first test digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Block(8), Block(8), nn.Flatten(), nn.Linear(512, 10)).eval()

    report = robustres.lipschitz(model, (1, 8, 8), effort=1.0)
    print(report.to_frame()[["name", "kind", "textbook", "joint", "upper", "lower"]].to_string(index=False))
    print(f"whole network: at most {report.upper:.3g} (bound), at least {report.lower:.3g} (estimate)")

    digits = robustres.load_data("digits", limit=5)
    certificates = certify(model, digits.images, report=report)
    for prediction, radius in zip(certificates.prediction.tolist(), certificates.radius.tolist(), strict=True):
        print(f"answer {prediction}: no change of l2 size below {radius:.4f} can alter it")


if __name__ == "__main__":
    main()
