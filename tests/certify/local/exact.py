"""The exact smallest margin of a small ReLU network on a box, by mixed-integer programming (HiGHS)."""

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn


class SmallNet(nn.Module):
    """x -> W3 r(a + W2 r(a)), a = W1 x + b1, r = ReLU: a residual network with two hidden layers."""

    def __init__(self, seed: int, inputs: int = 4, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.last = nn.Linear(width, classes)
        for layer in (self.first, self.second, self.last):
            with torch.no_grad():
                for values in layer.parameters():
                    values.copy_(torch.randn(values.shape, generator=generator) / values.shape[-1] ** 0.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x.flatten(1))
        answer: Tensor = self.last(torch.relu(a + self.second(torch.relu(a))))
        return answer


def smallest_margin(net: SmallNet, lower: Tensor, upper: Tensor, label: int) -> float:
    """Minimum over the box and over j of z_label - z_j, exact to about 1e-6 apart from rounding."""
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in net.parameters())
    n, m = w1.shape[1], len(b1)
    # Variables: x (n), a (m), h = r(a) (m), c = a + W2 h + b2 (m), g = r(c) (m), binaries p (m), q (m).
    size, far = n + 6 * m, 1e3
    at = {name: n + place * m for place, name in enumerate("ahcgpq")}
    rows: list[np.ndarray] = []
    low: list[float] = []
    high: list[float] = []

    def add(parts: dict[int, float], least: float, most: float) -> None:
        row = np.zeros(size)
        for place, value in parts.items():
            row[place] += value
        rows.append(row)
        low.append(least)
        high.append(most)

    for i in range(m):
        add({at["a"] + i: 1.0, **{k: -w1[i, k] for k in range(n)}}, b1[i], b1[i])
        add({at["c"] + i: 1.0, at["a"] + i: -1.0, **{at["h"] + k: -w2[i, k] for k in range(m)}}, b2[i], b2[i])
        for z, r, on in (("a", "h", "p"), ("c", "g", "q")):
            add({at[r] + i: 1.0, at[z] + i: -1.0}, 0.0, np.inf)
            add({at[r] + i: 1.0, at[z] + i: -1.0, at[on] + i: far}, -np.inf, far)
            add({at[r] + i: 1.0, at[on] + i: -far}, -np.inf, 0.0)
    least = np.full(size, -far)
    most = np.full(size, far)
    least[:n], most[:n] = lower.flatten().numpy(), upper.flatten().numpy()
    least[at["h"] : at["c"]] = least[at["g"] :] = 0.0
    most[at["p"] :] = 1.0
    whole = np.zeros(size)
    whole[at["p"] :] = 1
    worst = np.inf
    for j in range(len(b3)):
        if j == label:
            continue
        cost = np.zeros(size)
        cost[at["g"] : at["p"]] = w3[label] - w3[j]
        found = milp(
            cost, constraints=LinearConstraint(np.array(rows), low, high), bounds=Bounds(least, most), integrality=whole
        )
        assert found.status == 0, found.message
        worst = min(worst, found.fun + b3[label] - b3[j])
    return float(worst)
