"""Bounds on the deviation of computed from exact logits, through every kind of piece (section 6 of the mathematics).

For every input within a ball around x, the norm r of a layer's values is at most |r(x)| plus the layer's Lipschitz
constant times the radius of the ball. Each operation adds at most kappa (|A| r + |b|) to the deviation, where |A| is
the norm of the absolute values of its weights, and propagates the deviation of its input multiplied by its Lipschitz
constant. A residual block propagates the deviation at its entry by the block's own bound, so that a tight block bound
helps here too.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.bounds.unit_domain import BOX_SLACK
from robustres.certify.graph.capture import Captured, device_of
from robustres.certify.graph.network import (
    Elementwise,
    Linear,
    Merge,
    Node,
    Opaque,
    Product,
    dominators,
    forward_roundings,
)
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm
from robustres.certify.proof.rounding import least
from robustres.errors import PrecisionError
from robustres.guard import random_state_kept
from robustres.numerics import UNIT_ROUNDOFF, gamma
from robustres.precision import REDUCED, floating_types, named

# The norms below are themselves computed in float64.
SLACK = 1 + 1e-6


@dataclass(eq=False)
class Deviation:
    """Bounds on |computed - exact| at every node, for N samples at once.

    sizes: l2 norm (N,) of every node's value at the samples. ball: (N,) l2 radius around each sample.
    dtype: type of the computation whose error is bounded.
    """

    analysis: Analysis
    sizes: dict[fx.Node, Tensor]
    ball: Tensor
    dtype: torch.dtype
    _dominator: dict[Node, Node] = field(init=False)
    _original: dict[fx.Node, Node] = field(init=False)
    _lipschitz: dict[Node, float] = field(init=False, default_factory=dict)
    _local: dict[Node, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._dominator = dominators(self.analysis.bounder.order)
        self._original = {node.origin: node for node in self.analysis.network.ordered()}

    def at_output(self) -> Tensor:
        """(N,): bound on the l2 deviation of the logits at every input in the ball."""
        source, *rest = self.analysis.bounder.order
        # One operation may consist of several nodes (x - 2 y: a scaling and a sum); its error is added at the last of
        # them.
        inner = {parent for node in rest for parent in node.inputs if parent.origin is node.origin}
        self._lipschitz[source] = 1.0
        reached = {source: torch.zeros_like(self.ball)}
        for node in rest:
            constant = self.analysis.bounder.row(node).upper
            above = self._dominator[node]
            self._lipschitz[node] = self._lipschitz[above] * constant
            introduced = torch.zeros_like(self.ball) if node in inner else self._introduced(node, reached)
            self._local[node] = introduced + self._carried_inside(node)
            reached[node] = reached[above] * constant + self._local[node]
        total = (reached[self.analysis.output] + self._after(self.analysis.output, reached)) * SLACK
        if self.analysis.captured.on_unit_domain:  # bounds that hold if values are this close to the exact ones
            total = torch.where(torch.stack(list(reached.values())).amax(0) > BOX_SLACK / 2, math.inf, total)
        return total

    def _carried_inside(self, node: Node) -> Tensor:
        """The deviation introduced by the branches of a merge between its dominator and the merge."""
        if not isinstance(node.piece, Merge | Product):
            return torch.zeros_like(self.ball)
        parts = torch.stack([self._since(parent, self._dominator[node]) for parent in node.inputs])
        if isinstance(node.piece, Product):
            return _product_error(node.piece, parts)
        return parts.sum(0) if node.piece.kind == "sum" else parts.norm(dim=0)

    def _since(self, node: Node, start: Node) -> Tensor:
        """The deviation introduced after `start`, which dominates `node`."""
        if node is start:
            return torch.zeros_like(self.ball)
        constant = self.analysis.bounder.row(node).upper
        return self._since(self._dominator[node], start) * constant + self._local[node]

    def _introduced(self, node: Node, reached: dict[Node, Tensor]) -> Tensor:
        """The deviation introduced by the operations between the inputs of a simplified node and the node itself."""
        entries = {}
        for parent in node.inputs:
            while parent.origin is node.origin and parent.inputs:
                parent = parent.inputs[0]
            size = self.sizes[parent.origin] + self._lipschitz[parent] * self.ball
            entries[self._original[parent.origin]] = size + reached[parent]
        return self._fold(self._original[node.origin], entries, {})[0]

    def _after(self, output: Node, reached: dict[Node, Tensor]) -> Tensor:
        """The deviation introduced after the output of the simplified network, which omits shifts and reshapings."""
        size = self.sizes[output.origin] + self._lipschitz[output] * self.ball + reached[output]
        return self._fold(self.analysis.network, {self._original[output.origin]: size}, {})[0]

    def _fold(
        self, node: Node, entries: dict[Node, Tensor], known: dict[Node, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The deviation introduced since the entries, and the size, of a node as captured."""
        if node in entries:
            return torch.zeros_like(self.ball), entries[node]
        if node not in known:
            inputs = [self._fold(parent, entries, known) for parent in node.inputs]
            error, size = self._step(node, inputs)
            # Sums and products are at most as large as the sizes; beyond this they may overflow.
            known[node] = torch.where(size > torch.finfo(self.dtype).max / 4, math.inf, error), size
        return known[node]

    def _step(self, node: Node, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        piece, u = node.piece, UNIT_ROUNDOFF[self.dtype]
        errors = torch.stack([error for error, _ in inputs])
        sizes = torch.stack([size for _, size in inputs])
        if isinstance(piece, Linear):
            steep = absolute_norm(piece.map)
            size = steep * (sizes[0] + errors[0]) + piece.shift
            lost = least(self.dtype) * piece.map.forward_roundings * (math.sqrt(math.prod(node.shape)) + size)
            return steep * errors[0] + self._kappa(node) * size + lost, size
        if isinstance(piece, Product):
            size = piece.largest[0] * sizes[1] + self.sizes[node.origin] + _product_error(piece, errors)
            rounding = 2 * u * size + least(self.dtype) * math.sqrt(math.prod(node.shape))
            return _product_error(piece, errors) + rounding, size
        if isinstance(piece, Merge):
            size = sizes.sum(0) + errors.sum(0) if piece.kind == "sum" else sizes.norm(dim=0)
            if piece.kind == "sum":
                return errors.sum(0) + u * len(inputs) * size, size
            return errors.norm(dim=0), size
        if isinstance(piece, Elementwise):
            return self._nonlinear(node, piece.function, piece.constant, errors[0], sizes[0])
        assert isinstance(piece, Opaque)
        return self._nonlinear(node, piece, piece.bound.upper, errors[0], sizes[0])

    def _nonlinear(
        self, node: Node, kind: Activation | Opaque, constant: float, error: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = kind.rounding(self.dtype)
        if own is None:
            raise PrecisionError(
                f"no deviation bound covers {type(kind).__name__} at {node.path or 'the top of the network'} in "
                f"{self.dtype}; certify in torch.float64"
            )
        after = constant * (size + error) + self.sizes[node.origin]
        lost = own.lost + least(self.dtype) + (kind.jump if isinstance(kind, Activation) else 0.0)
        squared = own.square * (size + error).square()
        introduced = own.relative * after + squared + lost * math.sqrt(math.prod(node.shape))
        return torch.where(size + error > own.reach, math.inf, constant * error + introduced), after

    def _kappa(self, node: Node) -> float:
        factor = ALGORITHM_FACTOR if self.dtype == torch.float64 else 1
        count = forward_roundings(node)
        return gamma(factor * count, self.dtype) if count else 0.0


def _product_error(piece: Product, errors: Tensor) -> Tensor:
    """The error of a product caused by errors (2, N) of its two factors."""
    return piece.largest[0] * errors[1] + piece.largest[1] * errors[0] + errors[0] * errors[1]


def require_covered_float32(captured: Captured, model: nn.Module, x: Tensor) -> None:
    """Refuse a float32 certificate for cases that no bound on the rounding of an operation covers.

    captured: of the model, whose weights are in float64 there.
    """
    on_cpu, cudnn = x.device.type == "cpu", x.device.type == "cuda" and torch.backends.cudnn.enabled
    nnpack = on_cpu and not torch.backends.mkldnn.enabled and torch.backends.nnpack.is_available()  # type: ignore[no-untyped-call]
    products = _rounded_products(x.device.type)
    rounded = not all(_in_float32(value) for value in captured.module.state_dict().values())
    reduced = ", ".join(named(dtype) for dtype in floating_types(model) if dtype in REDUCED)
    reasons = (
        (reduced, f"the network has weights in {reduced}, in which it may compute; convert it with model.float()"),
        (_uses_autocast(captured, x), "the network computes in fewer digits under autocast; leave it out"),
        (captured.computed, "no deviation bound covers weights that the network computes from others when it runs (a "
         "parametrisation); make them plain weights first (torch.nn.utils.parametrize.remove_parametrizations)"),
        (x.dtype != torch.float32, f"a float32 certificate requires float32 images, got {x.dtype}; convert them first"),
        (captured.defined, f"no bound is known on the rounding of {', '.join(captured.defined)}, known by definition"),
        (captured.resized, f"no bound is known on the rounding of {', '.join(captured.resized)}, whose weights torch "
         "computes in float32"),
        (rounded, "the network has weights that float32 would round; convert it with model.float()"),
        (products, f"products in float32 may be rounded to fewer digits ({', '.join(products)}); set "
         "torch.set_float32_matmul_precision('highest') and torch.backends.mkldnn.conv.fp32_precision = 'ieee'"),
        (nnpack, "NNPACK may use Winograd or Fourier convolutions in float32, which no deviation bound covers; set "
         "torch.backends.mkldnn.enabled = True"),
        (cudnn, "cuDNN may use Winograd or Fourier convolutions in float32, which no deviation bound covers; set "
         "torch.backends.cudnn.enabled = False"),
    )  # fmt: skip
    for holds, reason in reasons:
        if holds:
            raise PrecisionError(f"{reason}, or certify in torch.float64")


def _rounded_products(device: str) -> list[str]:
    """The fewer digits to which torch may round products in float32 on this kind of device, for matrices and
    convolutions; before torch 2.9, one setting for all."""
    backend = torch.backends.mkldnn if device == "cpu" else torch.backends.cuda
    settings = [getattr(getattr(backend, part, None), "fp32_precision", None) for part in ("conv", "matmul")]
    known = {str(setting) for setting in settings if setting is not None} or {torch.get_float32_matmul_precision()}
    return sorted(known - {"none", "ieee", "highest"})


class _AutocastWatch(TorchFunctionMode):
    """Notices autocast on a kind of device in the calls of torch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind: str = kind
        self.used: bool = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.used = self.used or torch.is_autocast_enabled(self.kind)
        return func(*args, **(kwargs or {}))


def _uses_autocast(captured: Captured, x: Tensor) -> bool:
    """Whether the module in float64, where autocast has no effect, uses it for the first of these images."""
    image = x[:1].to(device_of(captured.module), torch.float64, copy=True)
    watch = _AutocastWatch(image.device.type)
    with torch.no_grad(), random_state_kept(), watch:
        captured.answer(image)
    return watch.used


def _in_float32(value: Tensor) -> bool:
    return not value.is_floating_point() or torch.equal(value, value.to(torch.float32).to(value.dtype))
