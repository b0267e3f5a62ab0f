"""Your own attack takes part in evaluation, resuming, reports and comparisons without any change to the package.

From the command line: robustres evaluate MODEL --data DATA --attacks pgd,own_attack:Flicker
"""

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robustres


@dataclass(frozen=True)
class Flicker:
    """The best of several random corners of the linf ball.

    The result is projected into the ball and verified on the model as given, so a mistake here can weaken the attack
    but cannot make its result wrong. Random numbers seeded by `indices`, the sample numbers, suit any batch size.
    """

    threat: robustres.ThreatModel
    tries: int = 20
    name: str = "flicker"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, indices: Tensor) -> Tensor:
        best, lowest = x.clone(), torch.full((len(x),), torch.inf)
        for trial in range(self.tries):
            signs = torch.stack([self._corner(image, int(i), trial) for image, i in zip(x, indices, strict=True)])
            moved = (x + self.threat.eps * signs).clamp(0, 1)
            with torch.no_grad():
                logits = model(moved)
            own = logits.gather(1, y[:, None])[:, 0]
            margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            better = margin < lowest
            best[better], lowest[better] = moved[better], margin[better]
        return best

    def _corner(self, image: Tensor, index: int, trial: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * index + trial)
        return torch.randint(0, 2, image.shape, generator=generator).to(image) * 2 - 1


def main() -> None:
    """Attack forty digits with FGSM and with Flicker."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    digits = robustres.load_data("digits", limit=40)
    # A class is instantiated per threat; an object, such as Flicker(robustres.ThreatModel("linf", 0.2)), has its own.
    settings = robustres.Settings(eps={"linf": (0.05, 0.1)}, attacks=("fgsm", Flicker))
    with tempfile.TemporaryDirectory() as folder:
        run = robustres.evaluate(network, digits, folder, settings)
        robustres.report(folder)
        for row in run.summary["attacks"]:
            print(f"{row['attack']} at {row['eps']:g}: at most {row['accuracy']:.1%} robust (an upper bound)")


if __name__ == "__main__":
    main()
