"""Which parts of the samples this process computes, alone or as one of several that torchrun started."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from robustres.errors import RobustresError

T = TypeVar("T")

# How long a process waits for the slowest one. If a process dies, torchrun notices it and ends the others.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `world`; the first one also writes the files of the run as a whole."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the manifest and the summary."""
        return self.rank == 0

    def own(self, parts: Sequence[range]) -> list[range]:
        """Every world-th part, starting with the rank-th; together the shards cover each part once."""
        return list(parts[self.rank :: self.world])

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank; a collective operation: every process must call it."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def from_first(self, value: Callable[[], T]) -> T:
        """The result of a computation in the first process, in all processes; a collective operation: every process
        must call it.

        A robustres error in the first process is raised in all of them.
        """
        if self.world == 1:
            return value()
        found: list[Any] = [None, None]  # the value, or the kind and the message of the error
        if self.first:
            try:
                found[0] = value()
            except RobustresError as error:
                found[1] = type(error), str(error)
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            kind, message = found[1]
            raise kind(message)
        return cast(T, found[0])

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def this_shard() -> Iterator[Shard]:
    """The shard given by torchrun's environment (RANK, WORLD_SIZE), or the whole if there is none.

    A process group that exists already is used and left as it is.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Shard()
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Shard(dist.get_rank(), world)
    finally:
        if own:
            dist.destroy_process_group()
