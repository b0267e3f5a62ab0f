"""The results of `lipschitz` on a network that `certify` needs: its graph, its bounds, its weights."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustres.certify.bounds.alike import alike
from robustres.certify.bounds.bound_cache import network_key
from robustres.certify.bounds.pieces import Bounder
from robustres.certify.bounds.surroundings import Surroundings
from robustres.certify.bounds.whole_network import WholeNetwork
from robustres.certify.graph.capture import BATCH, Captured, capture
from robustres.certify.graph.float64_copy import float64_copy
from robustres.certify.graph.network import Node
from robustres.certify.graph.own_type import as_written, own_type
from robustres.certify.graph.single_function import AGREEMENT, close
from robustres.certify.graph.tracing import outermost_stated
from robustres.certify.maps.linear_map import as_rows
from robustres.errors import InputError, RobustresError
from robustres.guard import random_state_kept

ANOTHER = (
    "the report is for another model: it has the same weights but gives different answers; run lipschitz on this "
    "model again"
)


@dataclass(frozen=True, eq=False)
class Analysis:
    """captured: the graph in float64. network: its output as a network of pieces, as captured. output: the same
    simplified. bounder: bounds of the simplified network's pieces in l2. whole: the elimination of its layers.
    surroundings: what the module's code could read elsewhere when it was captured.
    """

    captured: Captured
    network: Node
    output: Node
    bounder: Bounder
    whole: WholeNetwork
    surroundings: Surroundings
    _compared: list[weakref.ref[nn.Module]] = field(init=False, default_factory=list)
    _measured: list[tuple[Tensor, Tensor, dict[fx.Node, Tensor]]] = field(init=False, default_factory=list)

    def require_same_model(self, model: nn.Module, x: Tensor) -> None:
        """Raise InputError if the model is not the analysed one: other weights, another graph, or other outputs.

        The contents of the model are compared first, and what its code can read elsewhere. If some of it differs or
        cannot be compared, the model is captured again and must have the same graph. Then its outputs are compared,
        for what that may have missed: the first time for some of the images x (N, ...) and for random inputs of
        several sizes and their negatives, with and without gradients enabled, later for images only.
        """
        module, own = self.captured.module, own_type(model)
        if not (own == self.captured.own and alike(module, model) and self.surroundings.same_for(model)):
            module = float64_copy(model)
            self._require_same_weights(module)
            same = own == self.captured.own and alike(module, self.captured.module)
            if not (same and self.surroundings.same_for(module)):
                self._require_same_graph(model)
        known = bool(self._compared) and self._compared[0]() is model
        generator = torch.Generator().manual_seed(len(x))
        noise = torch.randn(BATCH, *x.shape[1:], dtype=torch.float64, generator=generator).to(x.device)
        first = x[:BATCH].to(torch.float64)
        inputs = (first,) if known else (first, 3 * noise, -first, -3 * noise, 100 * noise, -100 * noise)
        for place, batch in enumerate(inputs):
            with torch.no_grad():
                expected = self.forward(batch, batch_size=BATCH)
            for gradients in (False, True) if place < 2 and not known else (False,):
                with random_state_kept(), torch.set_grad_enabled(gradients):
                    answer = as_written(module, own)(batch.clone().requires_grad_(gradients).clone())
                if not close(expected, answer.detach(), AGREEMENT):
                    raise InputError(ANOTHER)
        self._compared[:] = [weakref.ref(model)]

    def _require_same_weights(self, module: nn.Module) -> None:
        ours, theirs = self.captured.module.state_dict(), module.state_dict()
        different = sorted(ours.keys() ^ theirs.keys()) or [
            name for name, value in ours.items() if not alike(value, theirs[name])
        ]
        if different:
            raise InputError(
                f"the report is for other weights than the model has (first difference: {different[0]}); "
                "run lipschitz on this model again"
            )

    def _require_same_graph(self, model: nn.Module) -> None:
        try:
            captured = capture(model, tuple(self.captured.source.meta["val"].shape[1:]))
        except RobustresError as error:
            raise InputError(ANOTHER) from error
        if network_key(captured, (), {}) != network_key(self.captured, (), {}):
            raise InputError(ANOTHER)
        for path, part in outermost_stated(captured.module).items():  # of which the graph contains nothing else
            known = self.captured.module.get_submodule(path)
            if not alike(known, part) or not Surroundings(known).same_for(part):
                raise InputError(ANOTHER)

    def measured(self, x: Tensor, *, batch_size: int) -> tuple[Tensor, dict[fx.Node, Tensor]]:
        """The float64 logits of x (N, ...), and the l2 norm (N,) of every node's value for every sample, on the CPU.

        The results for the last images are cached, so that certificates in several norms run the network once.
        """
        if self._measured and self._measured[0][0].shape == x.shape and torch.equal(self._measured[0][0], x):
            return self._measured[0][1:]
        sizes = {self.captured.source: _sizes(x)}

        def observe(span: slice, node: fx.Node, value: Tensor) -> None:
            sizes.setdefault(node, torch.zeros(len(x), dtype=torch.float64))[span] = _sizes(value)

        logits = self.forward(x, batch_size=batch_size, observe=observe).cpu()
        self._measured[:] = [(x.clone(), logits, sizes)]
        return logits, sizes

    def forward(
        self, x: Tensor, *, batch_size: int, observe: Callable[[slice, fx.Node, Any], None] | None = None
    ) -> Tensor:
        """The float64 logits of x (N, ...), batch by batch; `observe` is called with samples, node and value."""
        captured = self.captured
        return captured.run_all(x, captured.source, captured.output, batch_size=batch_size, observe=observe)


def _sizes(value: Tensor) -> Tensor:
    sizes: Tensor = as_rows(value).to(torch.float64).norm(dim=1).cpu()
    return sizes
