"""Everything that `lipschitz` learnt about a network, kept for `certify`: its graph, its bounds, its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustres.certify.bounds.pieces import Bounder
from robustres.certify.bounds.whole_network import WholeNetwork
from robustres.certify.graph.capture import BATCH, Captured, close, float64_copy
from robustres.certify.graph.network import Node
from robustres.errors import InputError
from robustres.guard import random_state_kept


@dataclass(frozen=True, eq=False)
class Analysis:
    """captured: the graph in float64. network: its output as a network of pieces, as captured. output: the same
    simplified. bounder: bounds of the simplified network's pieces in l2. whole: the elimination of its layers.
    """

    captured: Captured
    network: Node
    output: Node
    bounder: Bounder
    whole: WholeNetwork

    def require_same_model(self, model: nn.Module, x: Tensor) -> None:
        """InputError where the model is not the one that was analysed: other weights or buffers, or other answers to
        some of the images x (N, ...) and to random inputs of several sizes and their opposites, with gradients enabled
        and without. A change that none of these inputs meets is not noticed."""
        module = float64_copy(model)
        ours, theirs = self.captured.module.state_dict(), module.state_dict()
        different = sorted(ours.keys() ^ theirs.keys()) or [
            name for name, value in ours.items() if not _same(value, theirs[name])
        ]
        if different:
            raise InputError(
                f"the report is about other weights than the model has (first difference: {different[0]}); "
                "run lipschitz on this model again"
            )
        generator = torch.Generator().manual_seed(len(x))
        noise = torch.randn(BATCH, *x.shape[1:], dtype=torch.float64, generator=generator).to(x.device)
        own = x[:BATCH].to(torch.float64)
        for place, inputs in enumerate((own, 3 * noise, -own, -3 * noise, 100 * noise, -100 * noise)):
            expected = self.forward(inputs, batch_size=BATCH)
            for gradients in (False, True) if place < 2 else (False,):
                with random_state_kept(), torch.set_grad_enabled(gradients):
                    answer = module(inputs.clone())
                if not close(expected, answer.detach(), 1e-9):
                    raise InputError(
                        "the report is about another model: it has the same weights but gives different answers; run "
                        "lipschitz on this very model again"
                    )

    def forward(
        self, x: Tensor, *, batch_size: int, observe: Callable[[slice, fx.Node, Any], None] | None = None
    ) -> Tensor:
        """The float64 logits of x (N, ...), batch by batch; `observe` is told which samples, node and value."""
        size = batch_size if self.captured.rebatches else BATCH
        rows = []
        for start in range(0, len(x), size):
            batch = x[start : start + size]
            count = len(batch)
            if count < BATCH and not self.captured.rebatches:
                batch = torch.cat([batch, batch[-1:].expand(BATCH - count, *batch.shape[1:])])
            span = slice(start, start + count)

            def tell(node: fx.Node, value: Any, span: slice = span, count: int = count) -> None:
                if observe is not None and isinstance(value, Tensor):
                    observe(span, node, value[:count])

            rows.append(self.captured.run({self.captured.source: batch}, self.captured.output, observe=tell)[:count])
        return torch.cat(rows)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs.detach().to(ours.device, ours.dtype))
