"""Power iteration on C^T C: the lower estimate of a norm shown beside every bound."""

import math

import torch
from torch import Tensor

from robustres.certify.maps.linear_map import LinearMap, Shape
from robustres.certify.maps.rounding import product_error
from robustres.certify.proof.bound import Estimate


def uniform_on_sphere(shape: Shape, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """One vector (1, *shape), uniform on the unit sphere; without a generator it is always the same."""
    source = torch.Generator().manual_seed(0) if generator is None else generator
    vector = torch.randn(1, *shape, dtype=torch.float64, generator=source, device=source.device)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit.to(device)


def power_iteration(map_: LinearMap, *, steps: int = 100, generator: torch.Generator | None = None) -> Estimate:
    """Lower estimate of the norm: |C v| for the best unit vector v found, minus the rounding error of the product."""
    with torch.no_grad():
        vector = uniform_on_sphere(map_.in_shape, map_.device, generator)
        best = 0.0
        for _ in range(steps):
            length = float(torch.linalg.vector_norm(vector))
            if length == 0 or not math.isfinite(length):
                break
            vector = vector / length
            image = map_(vector)
            best = max(best, float(torch.linalg.vector_norm(image)))
            vector = map_.adjoint(image)
        value = max(0.0, best * (1 - 1e-12) - product_error(map_))
    return Estimate(value, "power iteration")
