"""Check that a module is a function of single samples: in every call, with and without gradients, in any batch."""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from robustres.certify.graph.counters import Counted, advanced, numbers_of
from robustres.certify.graph.own_type import as_written
from robustres.certify.graph.tracing import first_line
from robustres.errors import ModelError, RobustresError
from robustres.precision import floating_types, taking

# Largest number of elements of a larger batch, and its largest size.
LARGER, LARGEST = 2**15, 257
USUAL = (4, 5, 8, 10, 16, 32, 64, 100, 128, 256)
AGREEMENT = 1e-9

Run = Callable[[Tensor], Tensor]


class ChangingAnswerError(ModelError):
    """The output of the module differs between identical calls."""


def answer_of(module: nn.Module, own: torch.dtype, example: Tensor) -> Tensor:
    """The output of the module for the batch `example` (N, *shape), one row per sample; to be called without gradients.

    own: the type in which the module was written, see `as_written`.
    Raises ModelError if the module does not run, does not return one row per sample, or gives a different output when
    called again, later, with gradients, or with other samples in the batch.
    """
    run = as_written(module, own)
    try:
        answer = run(example.clone())
        counted = numbers_of(module)
        if not isinstance(answer, Tensor) or answer.ndim < 2 or len(answer) != len(example):
            raise ModelError(
                f"the model must return one tensor with one row per sample, got {_described(answer)}; wrap it so that "
                "it does (robustres.load_model wraps the classifiers of transformers)"
            )
        repeated = run(example.clone())
        batches = {len(part): run(part) for part in _batches(example)}
        graded = _with_gradients(run, example)
    except RobustresError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model does not run in float64 on inputs of shape {tuple(example.shape)}: {first_line(error)}"
        ) from error
    if not close(answer, repeated, AGREEMENT):
        raise ChangingAnswerError("the model's answer changes from call to call, so it is not a function of its input")
    if not all(close(_repeated(answer, count), part, AGREEMENT) for count, part in batches.items()):
        raise ModelError("the model's answer to a sample depends on the other samples of its batch")
    if not all(close(answer, other, AGREEMENT) for other in graded):
        raise ModelError(
            "the model gives different answers when gradients are enabled; make its answer the same both ways"
        )
    _require_constant_buffers(module, run, example)
    _require_uncounted(module, run, example, answer, counted)
    return answer


def require_same_in_every_use(module: nn.Module, own: torch.dtype, example: Tensor, answer: Tensor) -> None:
    """Raise ModelError if a module that has not been called yet, and is not used afterwards, does not give this answer
    after a first call with other values, in inference mode, or for an example in another order in memory.

    Where it fails in inference mode or rejects that order it gives no other answer.
    """
    run = as_written(module, own)
    run(example.square() / 2)
    if not close(answer, run(example.clone()), AGREEMENT):
        raise ModelError(
            "the model's answer depends on the first input that it is called with, from which it sets values of its "
            "own; call it once on the images that it is meant for"
        )
    with torch.inference_mode():
        _require_same(run, example.clone(), answer, "in inference mode")
    if example.ndim == 4:
        turned = example.clone(memory_format=torch.channels_last)
    else:
        axes = tuple(reversed(range(example.ndim)))
        turned = example.permute(axes).clone(memory_format=torch.contiguous_format).permute(axes)
    _require_same(run, turned, answer, "for inputs in another order in memory")


def require_same_in_own_type(module: nn.Module, example: Tensor, answer: Tensor) -> None:
    """Raise ModelError if a module that was not cast answers to images in float32 as no rounding explains: its code
    reads the names, sizes or bits of its types. A quarter of the digits must agree, of all that does not overflow.
    """

    def run(x: Tensor) -> Tensor:
        found = taking(module, x)(x).to(answer)
        return torch.where(found.isfinite() & answer.isfinite(), found, answer)

    digits = max(torch.finfo(dtype).eps for dtype in (torch.float32, *floating_types(module))) ** 0.25
    _require_same(run, example.to(torch.float32), answer, "in float32 and in float64", digits)


def _require_same(run: Run, example: Tensor, answer: Tensor, where: str, tolerance: float = AGREEMENT) -> None:
    found = answer
    with suppress(Exception):  # any error of torch or of the model, which is no other answer
        found = run(example)
    if not close(answer, found, tolerance):
        raise ModelError(f"the model gives different answers {where}; make its answer the same both ways")


def _described(answer: object) -> str:
    """The kind of an answer, for messages."""
    return f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__


def _batches(example: Tensor) -> list[Tensor]:
    """Batches of fewer samples, and of usual and of odd sizes up to many more if the samples are small."""
    many = min(LARGEST, LARGER // max(1, example[0].numel()))
    counts = {*range(1, len(example)), *(size for size in (*USUAL, many) if len(example) < size <= many)}
    return [_repeated(example, count) for count in sorted(counts)]


def _repeated(rows: Tensor, count: int) -> Tensor:
    """`count` rows, repeating the given ones."""
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def _with_gradients(run: Run, example: Tensor) -> list[Tensor]:
    """The outputs with gradients enabled, for an input that does not require gradients and for one that does."""
    with torch.enable_grad():
        inputs = (example.clone(), example.clone().requires_grad_().clone())
        return [run(x).detach() for x in inputs]


def _require_uncounted(module: nn.Module, run: Run, example: Tensor, answer: Tensor, counted: Counted) -> None:
    """Raise ModelError if the output depends on a number that the module changes when it runs.

    counted: the numbers after its first run, with all that this has stored for later ones.
    """
    for names in advanced(module, counted):
        try:
            found = run(example.clone())
        except Exception as error:
            reason = (
                f"fails for other values of a counter ({names}: {first_line(error)}); keep none while it is certified"
            )
            raise ModelError(f"the model {reason}") from error
        if not close(answer, found, AGREEMENT):
            raise ModelError(f"the model's answer depends on a counter ({names}), so it is not a function of its input")


def _require_constant_buffers(module: nn.Module, run: Run, example: Tensor) -> None:
    """Raise ModelError if the module still changes its buffers after it has run several times."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    run(example.clone())
    if any(name in kept and not _equal(buffer, kept[name]) for name, buffer in module.named_buffers()):
        raise ModelError("the model changes its own buffers when it answers, so it is not a function of its input")


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | ((left != left) & (right != right))).all())


def close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    """Whether two outputs agree to a tolerance relative to 1 plus the largest finite value.

    Values that overflow agree with each other: whether a sum of them is infinite or NaN depends on the order of its
    terms, which changes with the size of the batch.
    """
    if left.shape != right.shape or not torch.equal(finite := left.isfinite(), right.isfinite()):
        return False
    left, right = left[finite], right[finite]
    scale = float(right.abs().max()) if right.numel() else 0.0
    return torch.allclose(left, right, rtol=0, atol=tolerance * (1 + scale))
