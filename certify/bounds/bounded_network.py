"""Everything that `lipschitz` learnt about a network, kept for `certify`: its graph, its bounds, its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustres.certify.bounds.pieces import Bounder
from robustres.certify.bounds.whole_network import WholeNetwork
from robustres.certify.graph.capture import BATCH, Captured
from robustres.certify.graph.network import Node
from robustres.errors import InputError


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

    def require_same_weights(self, model: nn.Module) -> None:
        """InputError where the model's weights or buffers are not those that were analysed."""
        ours, theirs = self.captured.module.state_dict(), model.state_dict()
        different = sorted(ours.keys() ^ theirs.keys()) or [
            name for name, value in ours.items() if not _same(value, theirs[name])
        ]
        if different:
            raise InputError(
                f"the report is about other weights than the model has (first difference: {different[0]}); "
                "run lipschitz on this very model again"
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
