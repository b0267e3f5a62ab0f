"""The model and the process are restored, whatever happens inside."""

import pytest
import torch
from torch import nn

from robustres.guard import evaluation_mode, random_state_kept, single_thread


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


def snapshot(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [buffer.clone() for buffer in model.buffers()],
    )


def disturb(model: nn.Module, error: type[BaseException]) -> None:
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        model.train()
        model(torch.rand(2, 1, 5, 5))
        model[0].weight.grad = None
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_modes_gradients_and_buffers_are_restored_even_after_an_error(error: type[BaseException]) -> None:
    model = network()
    modes, parameters, buffers = snapshot(model)
    with pytest.raises(error):
        disturb(model, error)
    after_modes, after_parameters, after_buffers = snapshot(model)
    assert after_modes == modes
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(after_parameters, parameters, strict=True))  # type: ignore[call-overload]
    assert all(torch.equal(a, b) for a, b in zip(after_buffers, buffers, strict=True))  # type: ignore[call-overload]


def test_the_global_random_state_is_restored() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with random_state_kept():
        torch.manual_seed(7)
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def interrupted_on_one_thread() -> None:
    with single_thread():
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt


def test_the_number_of_threads_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_on_one_thread()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
