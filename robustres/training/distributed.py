"""Several processes for one training run: started by torchrun, detected by its environment variables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch of indices."""
        return batch[self.rank :: self.size]


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The process group of torchrun (gloo on CPUs, nccl on GPUs), or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not distributed.is_initialized():
        yield World()
        return
    started = not distributed.is_initialized()
    if started:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        if started:
            distributed.destroy_process_group()
