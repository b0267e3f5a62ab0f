"""Models that are not functions of their input, or hide it from the capture, are refused; caches are not."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.errors import ModelError, UnsupportedOperationError


class Keeping(nn.Module):
    """A layer and places where something can be kept between calls."""

    total = 0

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.table, self.function = nn.Linear(4, 3), dict[str, Any](), function
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def in_a_table(model: Any, x: Tensor) -> Tensor:
    model.table["n"] = model.table.get("n", 0) + 1
    return model.layer(x) * (1 if model.table["n"] < 60 else 50)  # type: ignore[no-any-return]


def in_a_list(model: Any, x: Tensor) -> Tensor:
    model.table.setdefault("seen", []).append(1)
    return model.layer(x) * (1 if len(model.table["seen"]) < 60 else 50)  # type: ignore[no-any-return]


def downwards(model: Any, x: Tensor) -> Tensor:
    model.table["left"] = model.table.get("left", 60) - 1
    return model.layer(x) * (1 if model.table["left"] > 0 else 50)  # type: ignore[no-any-return]


def from_a_list(model: Any, x: Tensor) -> Tensor:
    left = model.table.setdefault("left", [1] * 60)
    del left[-1:]
    return model.layer(x) * (1 if left else 50)  # type: ignore[no-any-return]


def in_a_queue(model: Any, x: Tensor) -> Tensor:
    model.table.setdefault("seen", deque()).append(1)
    return model.layer(x) * (1 if len(model.table["seen"]) < 60 else 50)  # type: ignore[no-any-return]


def in_numpy(model: Any, x: Tensor) -> Tensor:
    model.table["n"] = model.table.get("n", np.int64(0)) + np.int64(1)
    return model.layer(x) * (1 if model.table["n"] < 60 else 50)  # type: ignore[no-any-return]


def in_a_tensor(model: Any, x: Tensor) -> Tensor:
    model.table.setdefault("n", torch.zeros(1)).add_(1)
    return model.layer(x) * (1 if model.table["n"].item() < 60 else 50)  # type: ignore[no-any-return]


def in_a_ring(model: Any, x: Tensor) -> Tensor:
    ring, place = model.table.setdefault("ring", [0.0] * 100), model.table.get("place", 0)
    ring[place], model.table["place"] = 1.0, (place + 1) % 100
    return model.layer(x)  # type: ignore[no-any-return]


def in_its_class(model: Any, x: Tensor) -> Tensor:
    type(model).total += 1
    return model.layer(x) * (1 if model.total < 10**6 else 50)  # type: ignore[no-any-return]


CALLS = 0


def in_a_global_variable(model: Any, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return model.layer(x) * (1 if CALLS < 10**6 else 50)  # type: ignore[no-any-return]


def in_a_default(model: Any, x: Tensor, memory: dict[str, int] = {"n": 0}) -> Tensor:  # noqa: B006
    memory["n"] += 1
    return model.layer(x) * (1 if memory["n"] < 10**6 else 50)  # type: ignore[no-any-return]


def counting() -> Callable[[Any, Tensor], Tensor]:
    calls = 0

    def in_an_enclosing_function(model: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return model.layer(x) * (1 if calls < 10**6 else 50)  # type: ignore[no-any-return]

    return in_an_enclosing_function


def in_a_buffer(model: Any, x: Tensor) -> Tensor:
    model.calls += 1
    return model.layer(x) * (1 if model.calls[0] < 1000 else 50)  # type: ignore[no-any-return]


def by_numpy(model: Any, x: Tensor) -> Tensor:
    far = (x.detach().numpy() > 1e5).any(1, keepdims=True)
    return model.layer(x) * torch.from_numpy(far * 49.0 + 1)  # type: ignore[no-any-return]


def cached(model: Any, x: Tensor) -> Tensor:
    model.table.setdefault(len(x), 2.0)
    return model.layer(x) * model.table[len(x)]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        *((in_a_table, "counter"), (in_a_list, "counter"), (in_its_class, "total"), (in_a_global_variable, "CALLS")),
        *((function, "counter") for function in (downwards, from_a_list, in_a_queue, in_numpy, in_a_tensor)),
        (in_a_ring, "fails for other values of a counter"),
        *((in_a_default, "counter"), (counting(), "enclosing function"), (in_a_buffer, "its own buffers")),
    ],
)
def test_calls_that_are_counted_anywhere_are_noticed(function: Callable[[Any, Tensor], Tensor], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        lipschitz(Keeping(function), (4,))


def test_values_that_are_read_through_numpy_are_no_constants() -> None:
    with pytest.raises(UnsupportedOperationError, match="cannot be a graph"):
        lipschitz(Keeping(by_numpy), (4,))


def test_values_that_are_kept_for_later_calls_are_allowed() -> None:
    model = Keeping(cached)
    norm = float(torch.linalg.matrix_norm(model.layer.weight.detach().double(), 2))
    assert lipschitz(model, (4,)).upper == pytest.approx(2 * norm)


def test_what_is_recorded_elsewhere_is_left_alone() -> None:
    seen: list[Tensor] = []

    def recorded(model: Any, x: Tensor) -> Tensor:
        seen.append(x.detach())
        return 2 * x

    assert lipschitz(Keeping(recorded), (4,)).upper == pytest.approx(2)
    count = len(seen)
    assert count == len({id(part) for part in seen}) > 5


def set_at_first(model: Any, x: Tensor) -> Tensor:
    model.table.setdefault("scale", 1 / x.std())
    return model.layer(x) * model.table["scale"]  # type: ignore[no-any-return]


def in_inference_mode(model: Any, x: Tensor) -> Tensor:
    return model.layer(x) * (50 if torch.is_inference_mode_enabled() else 1)  # type: ignore[no-any-return]


def in_order_of_memory(model: Any, x: Tensor) -> Tensor:
    return model.layer(x) * (1 if x.is_contiguous() else 50)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "words"),
    [(set_at_first, "first input"), (in_inference_mode, "inference mode"), (in_order_of_memory, "order in memory")],
)
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_other_uses_of_the_same_model_give_the_same_answer(
    function: Callable[[Any, Tensor], Tensor], words: str, shape: tuple[int, ...]
) -> None:
    flat = Keeping(lambda model, x: function(model, x).flatten(1))
    with pytest.raises(ModelError, match=words):
        lipschitz(flat, shape)


def test_a_model_that_has_set_its_values_is_certified() -> None:
    model = Keeping(set_at_first)
    model(torch.randn(100, 4))
    exact = torch.linalg.matrix_norm(model.layer.weight.detach().double(), 2) * model.table["scale"]
    assert lipschitz(model, (4,)).upper == pytest.approx(float(exact))


def test_complex_weights_keep_their_imaginary_parts() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.tensor([3j, 4 + 3j, 1j]))
            self.layer = nn.Linear(3, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.phase.imag)  # type: ignore[no-any-return]

    model = Rotated()
    matrix = (model.layer.weight * torch.tensor([3.0, 3.0, 1.0])).detach()
    assert lipschitz(model, (3,)).upper == pytest.approx(float(torch.linalg.matrix_norm(matrix.double(), 2)))
