"""The loop that every iterative attack shares: an active set that is refilled from a queue.

A batch holds slots, each working on one (sample, restart). A slot whose sample is fooled, or whose search is over, is
freed at once and taken by the next sample in the queue, so the batch stays full while there is work. A sample whose
restart failed goes back to the end of the queue with the next restart; two restarts of one sample never run at the
same time, so the outcome does not depend on the batch size.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.ledger import Ledger
from robustres.attacks.problem import Problem, vanished


class Slots(dict[str, Tensor]):
    """The state of a batch of running searches: tensors by name, all with the slots as first dimension.

    Always there: sample (position in the problem), restart, index, x, low, high, classes, age (updates so far),
    points (what the model sees next), runs (of the model), stuck (whether the last gradient was exactly zero), zeros
    (how many were), kept (the nearest miss) with its margin. Everything else belongs to the search.
    """

    @property
    def count(self) -> int:
        return len(self["sample"])

    def taken(self, keep: Tensor) -> "Slots":
        """The slots that the mask or the positions pick."""
        return Slots({name: values[keep] for name, values in self.items()})

    def joined(self, others: "Slots") -> "Slots":
        """These slots followed by others."""
        return Slots({name: torch.cat([values, others[name]]) for name, values in self.items()})


class Search(ABC):
    """One way of searching, for many samples at once: where to start, what to maximise, how to move.

    uses_gradient: whether `move` needs a gradient; `loss` is then differentiated at `points`.
    stays_inside: whether `points` are always in the ball, so that a near miss is worth keeping.
    minimises: whether further restarts are of use for a sample that is fooled already.
    """

    uses_gradient: ClassVar[bool] = True
    stays_inside: ClassVar[bool] = True
    minimises: bool = False

    @abstractmethod
    def begin(self, slots: Slots) -> None:
        """Add the search's own state to fresh slots, `points` among it."""

    @abstractmethod
    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        """What to maximise, (B,), from the logits (B, K) at `points`."""

    def worth_offering(self, slots: Slots, hit: Tensor) -> Tensor:
        """Which of the slots (B,) whose points fool the model are offered to the ledger and, confirmed, retired."""
        return hit

    @abstractmethod
    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Update the state and `points` in place; returns a mask (B,) of the slots that have ended.

        The `points` of a slot that ends are offered to the model once more, without a gradient.
        """


def run(problem: Problem, search: Search, *, ledger: Ledger, restarts: int, batch_size: int) -> None:
    """Search for every sample that the ledger does not hold as fooled yet, and enter what is found there."""
    queue = deque((int(sample), 0) for sample in (~ledger.fooled).nonzero().flatten())
    slots = _fresh(problem, search, ledger, queue, batch_size)
    while slots.count:
        logits, loss, gradient = _evaluated(problem, search, slots)
        finite = torch.isfinite(logits).all(dim=1)
        hit = problem.answered(logits, slots["classes"]) & finite
        fooled = _offered(search, ledger, slots, hit)
        if search.stays_inside:
            _keep_nearest_miss(slots, problem.margin(logits, slots["classes"]), finite & ~hit)
        over = (search.move(slots, logits, loss, gradient) | ~finite) & ~fooled
        slots["age"] = slots["age"] + 1
        done = over | fooled
        if bool(done.any()):
            again = _retire(search, ledger, slots.taken(done), over[done], finite[done], restarts)
            queue.extend(again)
            slots = slots.taken(~done)
            if queue and (not slots.count or batch_size - slots.count >= batch_size // 8):
                fresh = _fresh(problem, search, ledger, queue, batch_size - slots.count)
                slots = slots.joined(fresh) if slots.count else fresh


def _evaluated(problem: Problem, search: Search, slots: Slots) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, loss and gradient at the points, counted in the slots."""
    points = slots["points"]
    slots["runs"] += 1
    if not search.uses_gradient:
        logits = problem.search_answers(points)
        return logits, search.loss(logits, slots), points.new_empty(0)
    logits, loss, gradient = problem.gradient(points, lambda logits: search.loss(logits, slots))
    slots["stuck"] = vanished(gradient)
    slots["zeros"] += slots["stuck"]
    return logits, loss, gradient


def _offered(search: Search, ledger: Ledger, slots: Slots, hit: Tensor) -> Tensor:
    """Enter successes; returns the mask of slots to retire as fooled."""
    candidate = search.worth_offering(slots, hit)
    retired = torch.zeros_like(candidate)
    if bool(candidate.any()):
        retired[candidate] = ledger.offer(slots["sample"][candidate], slots["points"][candidate])
    return retired


def _keep_nearest_miss(slots: Slots, margin: Tensor, miss: Tensor) -> None:
    """Keep the points in the mask `miss` that come closer to a success than all before."""
    better = miss & (margin > slots["kept_margin"])
    if bool(better.all()):
        slots["kept"].copy_(slots["points"])
        slots["kept_margin"].copy_(margin)
    elif len(chosen := better.nonzero().flatten()):
        slots["kept"].index_copy_(0, chosen, slots["points"][chosen])
        slots["kept_margin"].index_copy_(0, chosen, margin[chosen].to(slots["kept_margin"].dtype))


def _retire(
    search: Search, ledger: Ledger, slots: Slots, over: Tensor, finite: Tensor, restarts: int
) -> list[tuple[int, int]]:
    """Enter what the slots have spent and, where the search is over, found; returns the restarts that are left."""
    samples = slots["sample"]
    ledger.steps[samples] += slots["age"] - (~over).to(torch.int64)  # the success was found before the last update
    ledger.evaluations[samples] += slots["runs"]
    ledger.nonfinite[samples] |= ~finite
    if search.uses_gradient:
        ledger.gradients[samples] += slots["runs"]
        ledger.zero_gradients[samples] += slots["zeros"]
    if search.stays_inside:
        ledger.note(samples[over], slots["kept"][over], slots["kept_margin"][over])
    last = over & finite
    if bool(last.any()):
        ledger.offer(samples[last], slots["points"][last])
    again = over & (slots["restart"] + 1 < restarts) & (~ledger.fooled[samples] | search.minimises)
    return list(zip(samples[again].tolist(), (slots["restart"][again] + 1).tolist(), strict=True))


def _fresh(problem: Problem, search: Search, ledger: Ledger, queue: deque[tuple[int, int]], room: int) -> Slots:
    """Slots for the next samples of the queue, as many as there is room for."""
    work = [queue.popleft() for _ in range(min(room, len(queue)))]
    sample = torch.tensor([s for s, _ in work], dtype=torch.int64, device=problem.x.device)
    slots = Slots(
        sample=sample,
        restart=torch.tensor([r for _, r in work], dtype=torch.int64, device=problem.x.device),
        index=problem.index[sample],
        x=problem.x[sample],
        low=ledger.low[sample],
        high=ledger.high[sample],
        classes=problem.classes[sample],
        age=torch.zeros_like(sample),
        runs=torch.zeros_like(sample),
        zeros=torch.zeros_like(sample),
        stuck=torch.zeros_like(sample, dtype=torch.bool),
    )
    search.begin(slots)
    if search.stays_inside:
        slots["kept"] = slots["x"].clone()
        slots["kept_margin"] = torch.full_like(sample, -torch.inf, dtype=problem.x.dtype)
    return slots
