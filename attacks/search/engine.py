"""The loop of every iterative attack: an active set that is refilled from a queue.

A batch holds slots, each working on one (sample, restart). A slot that has found a candidate, or whose search is over,
leaves the batch at once and the next sample in the queue takes its place, so the batch stays full as long as there is
work. The slots that have left wait until there are enough of them for one run of the model as given: confirmed examples
are recorded and their slots retired, while a slot whose candidate is not confirmed resumes where it stopped. A sample
whose restart failed goes to the end of the queue with its next restart; two restarts of one sample never run at the
same time, so the outcome does not depend on the batch size. If the restarts are `apart`, all but the first run in
parallel instead, each to its own end; they fill the batch, and again its size does not affect the outcome. If a batch
does not fit into memory, half of its slots wait unchanged, and later batches keep the smaller size.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.geometry.ball import copy_rows


class Slots(dict[str, Tensor]):
    """The state of a batch of running searches: named tensors whose first dimension is the slot.

    Always present: sample (position in the problem), restart, index, x, low, high, classes, age (updates so far),
    points (the next input of the model), runs (of the model), stuck (whether the last gradient was exactly zero), zeros
    (how many gradients were) and, if misses are kept, the nearest one as `kept` with its margin. All other entries
    belong to the search. The slots own their tensors: `drop` writes into them, so a search must not store a tensor that
    it shares.
    """

    @property
    def count(self) -> int:
        return len(self["sample"])

    def taken(self, keep: Tensor) -> "Slots":
        """The slots selected by a mask or by positions."""
        positions = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return Slots({name: values.index_select(0, positions) for name, values in self.items()})

    def parted(self, first: Tensor) -> tuple["Slots", "Slots"]:
        """The slots in the mask, and the others; nothing is copied if all of them fall on one side."""
        if bool(first.all()):
            return Slots(self), self.split(0)[0]
        return self.taken(first), self.taken(~first)

    def joined(self, others: "Slots") -> "Slots":
        """These slots followed by others."""
        if not self.count or not others.count:
            return self if self.count else others
        return Slots({name: torch.cat([values, others[name]]) for name, values in self.items()})

    def split(self, count: int) -> tuple["Slots", "Slots"]:
        """The first `count` slots and the others."""
        first = Slots({name: values[:count] for name, values in self.items()})
        return first, Slots({name: values[count:] for name, values in self.items()})

    def drop(self, gone: Tensor) -> None:
        """Remove the slots in the mask: the last slots move into the gaps, so that few rows are copied."""
        count = self.count - int(gone.sum())
        gaps = gone[:count].nonzero().flatten()
        movers = count + (~gone[count:]).nonzero().flatten()
        for name, values in self.items():
            if len(gaps):
                values[gaps] = values[movers]
            self[name] = values[:count]


class Search(ABC):
    """A search over many samples at once: where to start, what to maximise, how to move.

    uses_gradient: whether `move` needs a gradient; `loss` is then differentiated at `points`.
    keeps_misses: whether the engine keeps the points nearest to a success, which must then always lie in the ball.
    minimises: whether further restarts are useful for a sample that is already fooled.
    apart: whether a sample that survives its first restart runs all others, which then do not wait for each other.
    """

    uses_gradient: ClassVar[bool] = True
    keeps_misses: ClassVar[bool] = True
    minimises: bool = False
    apart: ClassVar[bool] = False

    @abstractmethod
    def begin(self, slots: Slots) -> None:
        """Add the state of the search, including `points`, to new slots."""

    @abstractmethod
    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        """The value to maximise, (B,), from the logits (B, K) at `points`."""

    def worth_offering(self, slots: Slots, hit: Tensor) -> Tensor:
        """Mask (B,) of the slots, among those that fool the model, to offer to the ledger and retire once confirmed."""
        return hit

    @abstractmethod
    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Update the state and `points`; return a mask (B,) of the slots that have ended.

        The `points` of a slot that ends are offered to the model once more, without a gradient.
        """

    def nearest_miss(self, slots: Slots) -> tuple[Tensor, Tensor] | None:
        """Points (B, ...) and margins (B,) of slots that have ended, kept if nothing better is known."""
        return (slots["kept"], slots["kept_margin"]) if self.keeps_misses else None


def run(problem: Problem, search: Search, *, ledger: Ledger, restarts: int | Tensor, batch_size: int) -> None:
    """Search for every sample that is not yet fooled according to the ledger, and record the examples found there.

    restarts: number of searches per sample, one number for all or (N,); samples with 0 are skipped.

    The samples with the least confident predictions come first: most of their searches are short, so the long searches
    run side by side to the end instead of a few of them continuing in a nearly empty batch.
    """
    count = torch.full_like(ledger.steps, restarts) if isinstance(restarts, int) else restarts
    samples = (~ledger.fooled & (count > 0)).nonzero().flatten()
    work = [(sample, 0) for sample in samples[ledger.loss[samples].argsort(descending=True, stable=True)].tolist()]
    if not search.apart:
        _drain(problem, search, ledger, work, count, batch_size)
        return
    alone = torch.zeros_like(count)
    _drain(problem, search, ledger, work, alone, batch_size)
    left = [sample for sample, _ in work if search.minimises or not bool(ledger.fooled[sample])]
    wanted = count.tolist()
    others = [(sample, r) for r in range(1, max(wanted, default=0)) for sample in left if r < wanted[sample]]
    _drain(problem, search, ledger, others, alone, batch_size)


def _drain(
    problem: Problem, search: Search, ledger: Ledger, work: list[tuple[int, int]], restarts: Tensor, batch_size: int
) -> None:
    """Run all pairs of sample and restart and, where they fail, the next restarts, up to `restarts` (N,)."""
    queue = deque(work)
    slots = _fresh(problem, search, ledger, queue, batch_size)
    nobody, _ = slots.split(0)
    left = paused = nobody
    idle = 0  # empty places in the batch, summed over the updates since it was last filled
    while slots.count:
        if (evaluated := _evaluated_where_it_fits(problem, search, slots)) is None:
            torch.cuda.empty_cache()
            batch_size = slots.count // 2
            slots, rest = slots.split(batch_size)
            paused = rest.joined(paused)
            continue
        if (leaving := _stepped(problem, search, slots, *evaluated)) is not None:
            left = left.joined(leaving)
        if left.count and left.count >= slots.count:
            resumed, again = _settled(search, ledger, left, restarts, batch_size)
            left, paused = nobody, paused.joined(resumed)
            queue.extend(again)
        room = batch_size - slots.count
        if paused.count and room:
            resumed, paused = paused.split(room)
            slots, room = slots.joined(resumed), room - resumed.count
        idle += room
        if queue and (not slots.count or (room and idle >= batch_size // 8)):
            slots, idle = slots.joined(_fresh(problem, search, ledger, queue, room)), 0


def _evaluated_where_it_fits(problem: Problem, search: Search, slots: Slots) -> tuple[Tensor, Tensor, Tensor] | None:
    """Like `_evaluated`, but None if so many slots do not fit into memory; the slots are then unchanged."""
    try:
        return _evaluated(problem, search, slots)
    except torch.OutOfMemoryError:
        if slots.count == 1:
            raise
        return None


def _stepped(
    problem: Problem, search: Search, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor
) -> Slots | None:
    """Move every slot once; remove from the batch, and return, those that found a candidate or ended.

    They carry `offered` (the points to verify: the candidate, or else the last point), `hit`, `over` and `finite`.
    """
    finite = torch.isfinite(logits).all(dim=1)
    answered = problem.answered(logits, slots["classes"]) & finite
    hit = search.worth_offering(slots, answered)
    if search.keeps_misses:
        _keep_nearest_miss(slots, problem.margin(logits, slots["classes"]), finite & ~answered)
    found = slots["points"][hit]
    over = search.move(slots, logits, loss, gradient) | ~finite
    slots["age"] = slots["age"] + 1
    leaving = hit | over
    if not bool(leaving.any()):
        return None
    left = Slots(slots) if bool(leaving.all()) else slots.taken(leaving)
    left |= {"hit": hit[leaving], "over": over[leaving], "finite": finite[leaving]}
    left["offered"] = left["points"].index_put((left["hit"],), found)
    slots.drop(leaving)
    return left


def _evaluated(problem: Problem, search: Search, slots: Slots) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, loss and gradient at the points, counted in the slots."""
    points = slots["points"]
    if not search.uses_gradient:
        logits = problem.search_answers(points)
        slots["runs"] += 1
        return logits, search.loss(logits, slots), points.new_empty(0)
    logits, loss, gradient, vanished = problem.gradient(points, lambda logits: search.loss(logits, slots))
    slots["runs"] += 1
    slots["stuck"] = vanished
    slots["zeros"] += vanished
    return logits, loss, gradient


def _keep_nearest_miss(slots: Slots, margin: Tensor, miss: Tensor) -> None:
    """Keep the points in the mask `miss` that are closer to a success than all previous ones."""
    better = (miss & (margin > slots["kept_margin"])).nonzero().flatten()
    copy_rows(slots["kept"], slots["points"], better)
    copy_rows(slots["kept_margin"], margin.to(slots["kept_margin"].dtype), better)


def _settled(
    search: Search, ledger: Ledger, left: Slots, restarts: Tensor, batch_size: int
) -> tuple[Slots, list[tuple[int, int]]]:
    """Verify and retire the slots that left the batch; return the slots to resume and the restarts still to run."""
    fooled = _confirmed(ledger, left, left["offered"], left["finite"], batch_size)
    found = left["hit"] & fooled
    ended = left["over"] & ~found
    # The candidate was not confirmed and the search is over: the points after the last step are still unverified.
    _confirmed(ledger, left, left["points"], ended & left["hit"] & left["finite"], batch_size)
    retired, resumed = left.parted(found | ended)
    again = _retire(search, ledger, retired, found[found | ended], restarts)
    for name in ("offered", "hit", "over", "finite"):
        del resumed[name]
    return resumed, again


def _confirmed(ledger: Ledger, slots: Slots, points: Tensor, mask: Tensor, batch_size: int) -> Tensor:
    """Mask (B,) of the slots in `mask` whose points fool the model as given; those points are recorded."""
    fooled = torch.zeros_like(mask)
    for part in in_parts(mask.nonzero().flatten(), batch_size):
        fooled[part] = ledger.offer(slots["sample"][part], points[part])
    return fooled


def _retire(search: Search, ledger: Ledger, slots: Slots, found: Tensor, restarts: Tensor) -> list[tuple[int, int]]:
    """Record the cost of the slots and the misses they kept; return the remaining restarts."""
    samples, ended = slots["sample"], ~found
    gradients = slots["runs"] * search.uses_gradient
    updates = slots["age"] - found.to(torch.int64)  # the success was found before the last update
    ledger.count(samples, steps=updates, evaluations=slots["runs"], gradients=gradients, zero_gradients=slots["zeros"])
    ledger.nonfinite[samples[~slots["finite"]]] = True
    if (miss := search.nearest_miss(slots)) is not None:
        ledger.note(samples[ended], miss[0][ended], miss[1][ended])
    again = ended & (slots["restart"] + 1 < restarts[samples]) & (~ledger.fooled[samples] | search.minimises)
    return list(zip(samples[again].tolist(), (slots["restart"][again] + 1).tolist(), strict=True))


def _fresh(problem: Problem, search: Search, ledger: Ledger, queue: deque[tuple[int, int]], room: int) -> Slots:
    """New slots for the next samples in the queue, as many as there is room for."""
    work = [queue.popleft() for _ in range(min(room, len(queue)))]
    sample = torch.tensor([s for s, _ in work], dtype=torch.int64, device=problem.x.device)
    slots = Slots(
        sample=sample,
        restart=torch.tensor([r for _, r in work], dtype=torch.int64, device=problem.x.device),
        index=problem.index[sample],
        x=problem.x[sample].to(problem.dtype),
        low=ledger.low[sample].to(problem.dtype),
        high=ledger.high[sample].to(problem.dtype),
        classes=problem.classes[sample],
        age=torch.zeros_like(sample),
        runs=torch.zeros_like(sample),
        zeros=torch.zeros_like(sample),
        stuck=torch.zeros_like(sample, dtype=torch.bool),
    )
    search.begin(slots)
    if search.keeps_misses:
        slots["kept"] = slots["x"].clone()
        slots["kept_margin"] = torch.full_like(sample, -torch.inf, dtype=problem.dtype)
    return slots
