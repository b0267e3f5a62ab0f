"""Lower estimate of the largest eigenvalue of each of many Hermitian matrices."""

import torch
from torch import Tensor


def top_ritz_pair(hermitian: Tensor, *, steps: int = 30) -> tuple[Tensor, Tensor]:
    """The largest Ritz value (F,), a lower estimate, and its unit vector (F, n), by re-orthogonalised Lanczos."""
    count, size = hermitian.shape[0], hermitian.shape[-1]
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, size, 1, dtype=torch.float64, generator=generator).to(hermitian)
    vector = (vector / torch.linalg.vector_norm(vector)).expand(count, -1, -1)
    basis, images = vector, hermitian @ vector
    noise = 1e-12 * torch.linalg.vector_norm(images, dim=-2, keepdim=True)  # below it the Krylov space is exhausted
    for _ in range(min(steps, size) - 1):
        image = images[..., -1:]
        for _ in range(2):
            image = image - basis @ (basis.mH @ image)
        length = torch.linalg.vector_norm(image, dim=-2, keepdim=True)
        vector = image / torch.where(length > noise, length, torch.inf)
        basis = torch.cat((basis, vector), dim=-1)
        images = torch.cat((images, hermitian @ vector), dim=-1)
    values, vectors = torch.linalg.eigh(basis.mH @ images)
    return values[:, -1], (basis @ vectors[..., -1:])[..., 0]
