"""Context managers that restore the state of a model and of the process, also after an error or Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Restore on exit: `training` of every module, `requires_grad`, `.grad` and every buffer's content.

    The body may switch modes and run the model freely; buffers are copied, which needs their size in memory once.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, content in buffers:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen parameters; everything is restored on exit."""
    with untouched(model):
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield model


def without_guards(module: nn.Module) -> nn.Module:
    """The given module without what torch.export added to it: checks that only accept batches of one size, and `eval`
    and `train` methods that raise.

    It computes exactly the operations of its graph, as in a .pt2 file.
    """
    for part in module.modules():
        hooks = part._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "__module__", "").startswith("torch.export.")]:
            del hooks[key]
        if isinstance(part, fx.GraphModule) and hasattr(part, "_guards_fn"):
            for node in [node for node in part.graph.nodes if node.target == "_guards_fn"]:
                part.graph.erase_node(node)
            del part._guards_fn
            part.recompile()
            for name in ("eval", "train"):
                part.__dict__.pop(name, None)
    return module


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global random state of the CPU and of every CUDA device on exit."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    cpu = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread inside the body.

    For small networks: their operations are too short to parallelise, and threads that wait for each other on a busy
    machine cost many times the work itself. The result also no longer depends on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
