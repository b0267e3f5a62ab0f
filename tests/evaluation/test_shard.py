"""Several processes together compute every part exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from robustres.evaluation.shard import Shard


@given(count=st.integers(0, 40), world=st.integers(1, 9))
def test_the_processes_cover_every_part_once_and_as_evenly_as_possible(count: int, world: int) -> None:
    parts = [range(start, start + 1) for start in range(count)]
    owned = [Shard(rank, world).own(parts) for rank in range(world)]
    assert sorted((part for own in owned for part in own), key=lambda part: part.start) == parts
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert all(own == sorted(own, key=lambda part: part.start) for own in owned)


def test_a_single_process_needs_no_process_group() -> None:
    assert Shard().first
    assert Shard().gather("mine") == ["mine"]
    assert Shard().from_first(lambda: 3) == 3
    assert not Shard(1, 2).first
