"""The Lipschitz constant of a whole network by all its layers at once, as training needs it: differentiable.

The fixed point that finds the best multipliers of a network (section 3.4 of the mathematics) carries r copies x of the
input's difference and a direction g for every neuron; the size of the output is largest where x and g are best, and
there it equals the smallest bound that such multipliers can prove. Its derivative with respect to the weights is then
that of one forward pass with x and g held fixed, so a training step costs one pass of r differences, and the state is
carried on from step to step while the weights move slowly. It is an estimate, never a certificate.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustres.certify.blocks.increments import SectorLayer, increments, on_device
from robustres.certify.graph.capture import Captured, call, device_of, operation_of
from robustres.certify.graph.network import Node
from robustres.certify.graph.reading import read_network
from robustres.certify.maps.linear_map import as_rows
from robustres.errors import InputError
from robustres.guard import evaluation_mode

COPIES = 8
FIRST_SWEEPS, SETTLED_SWEEPS = 60, 20
OVER = 0.8  # over-relaxation of the sweeps that settle
TINY = 1e-20


class WholeNorm(nn.Module):
    """Called without arguments, the estimated l2 Lipschitz constant of all outputs of `model` in pixel units.

    model: any classifier that `lipschitz` covers whose nonlinear operations are activations or sorts; its weights are
        read at every call, its batch normalisation is that of evaluation mode.
    image_shape: of one image. copies: of the input's difference; with fewer the estimate may end lower.
    Raises InputError for other operations, UnsupportedOperationError where the certifier cannot read the network.
    """

    change: Tensor

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...], *, copies: int = COPIES) -> None:
        super().__init__()
        with evaluation_mode(model):
            captured, output = read_network(model, image_shape)
        self._graph = _Graph(captured, output)
        self._settled: Tensor | None = None
        self._steering: list[Tensor] = []
        self._model = (model,)  # a tuple, so that its parameters are not registered twice
        draw = torch.Generator().manual_seed(0)
        device = next(iter(model.parameters())).device
        x = torch.randn(copies, *image_shape, generator=draw)
        self.register_buffer("change", (x / x.norm()).to(device))
        for place, layer in enumerate(self._graph.layers):
            g = torch.randn(copies, len(layer.sector.tie), generator=draw).to(device)
            self.register_buffer(f"direction{place}", layer.unit(g))
        self.settle(FIRST_SWEEPS)

    def distances(self, labels: Tensor) -> Tensor:
        """How fast z_y - z_j can change with all outputs: the square root of 2 for j != y; (N, classes)."""
        own = functional.one_hot(labels, self._graph.classes)
        return (1 - own.to(self.change)) * math.sqrt(2)

    def forward(self) -> Tensor:
        """A scalar: settled in evaluation mode, else one to differentiate, after which the state takes a step."""
        if not self.training:
            if self._settled is None:
                self._settled = self.settle()
            return self._settled
        self._follow()
        size, self._steering = self._sweep()
        return size

    def train(self, mode: bool = True) -> "WholeNorm":
        """As of every module; the number for evaluation is found again, since the weights may have changed."""
        self._follow()
        self._settled = None
        return super().train(mode)

    def settle(self, sweeps: int = SETTLED_SWEEPS) -> Tensor:
        """Sweeps at fixed weights, after which the number is closer to the constant that can be proved."""
        for sweep in range(sweeps):
            size, steering = self._sweep()
            slopes = torch.autograd.grad(size, steering, materialize_grads=True)
            self._step(slopes, OVER if 4 < sweep < sweeps - 4 else 0.0)
        return self._sweep()[0].detach()

    def _sweep(self) -> tuple[Tensor, list[Tensor]]:
        """The size of the output; x and what g contributes to every layer, as leaves of its graph."""
        with torch.enable_grad():
            x = self.change.detach().requires_grad_(True)
            directions = [self.get_buffer(f"direction{place}") for place in range(len(self._graph.layers))]
            out, steered = self._graph.differences(self._model[0], x, directions)
            return out.norm(), [x, *steered]

    def _follow(self) -> None:
        """The step that follows from the last call, if its number was differentiated: only directions matter."""
        slopes = [leaf.grad for leaf in self._steering]
        self._steering = []
        if slopes and all(slope is not None and slope.any() for slope in slopes):
            self._step(slopes, 0.0)  # type: ignore[arg-type]

    @torch.no_grad()
    def _step(self, slopes: Sequence[Tensor], over: float) -> None:
        """Turn x and every g to where the size grows fastest, past it by `over`."""
        moved = (1 + over) * slopes[0] / slopes[0].norm().clamp_min(TINY) - over * self.change
        self.change = moved / moved.norm().clamp_min(TINY)
        for place, (layer, slope) in enumerate(zip(self._graph.layers, slopes[1:], strict=True)):
            name = f"direction{place}"
            moved = layer.unit(layer.reach * slope)
            setattr(self, name, moved if over == 0 else layer.unit((1 + over) * moved - over * self.get_buffer(name)))


class _Layer:
    """A layer of sectors with its numbers in single precision: the middle slope and half the width of every neuron."""

    def __init__(self, sector: SectorLayer) -> None:
        self.sector = sector
        self.middle = ((sector.lower + sector.upper) / 2).float()
        self.reach = ((sector.upper - sector.lower) / 2).float()

    def unit(self, g: Tensor) -> Tensor:
        """Each tie's direction with norm 1 over the copies."""
        largest = g.abs().amax().clamp_min(TINY)
        g = g / largest
        return g / self.sector.over_ties(g.square().sum(0)).clamp_min(TINY).sqrt()[self.sector.tie]

    def answer(self, entered: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer answers to differences, and what steers it along the direction: a leaf of the graph."""
        given = as_rows(_difference(entered))
        rows, steer, _ = self.sector.answer(given, self.middle, self.reach, direction)
        return _with_zero(rows.reshape(len(rows), *entered.shape[1:])), steer


class _Graph:
    """The captured graph, run on differences with the weights that the model has now."""

    def __init__(self, captured: Captured, output: Node) -> None:
        self.captured, self.output = captured, output
        self.classes = math.prod(output.shape)
        device = device_of(captured.module)
        self.layers: list[_Layer] = []
        self.at: dict[fx.Node, int] = {}
        self.entering: list[fx.Node] = []
        for piece, layer in increments(output.ordered()).items():
            placed = on_device(layer, device)
            if not isinstance(placed, SectorLayer):
                raise InputError(
                    "a loss under the whole network's bound knows activations and sorts, not the operation "
                    f"{operation_of(piece.origin)} at {piece.path or 'the top of the network'}; replace it, or train "
                    "with bound = 'blocks'"
                )
            self.at[piece.origin] = len(self.layers)
            self.layers.append(_Layer(placed))
            self.entering.append(piece.inputs[0].origin)
        names = {value.data_ptr(): name for name, value in _tensors(captured.module).items() if value.numel()}
        self.weights = {
            node: names[value.data_ptr()]
            for node, value in captured.constants.items()
            if isinstance(value, Tensor) and node.op != "call_function" and value.data_ptr() in names
        }
        moving = set(self.weights)
        self.recomputed = []
        for node in captured.computed:
            if moving.intersection(node.all_input_nodes):
                moving.add(node)
                self.recomputed.append(node)
        self.fixed = {
            node: value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
            for node, value in captured.constants.items()
            if node not in moving
        }

    def differences(self, model: nn.Module, x: Tensor, directions: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The output's differences (r, outputs) of input differences x (r, *shape), and what steers each layer.

        One more row, all zeros, passes through every affine operation and takes its constant part out again.
        """
        values: dict[fx.Node, Any] = dict(self.fixed)
        live = _tensors(model)
        values.update({node: live[name].to(x.dtype) for node, name in self.weights.items()})
        for node in self.recomputed:
            values[node] = call(node, values, self.captured.module, self.captured.own)
        values[self.captured.source] = _with_zero(x)
        steered: dict[int, Tensor] = {}
        for node in self.captured.nodes:
            if node in self.at:
                place = self.at[node]
                values[node], steered[place] = self.layers[place].answer(
                    values[self.entering[place]], directions[place]
                )
            else:
                values[node] = call(node, values, self.captured.module, self.captured.own, batch=len(x) + 1)
        return as_rows(_difference(values[self.output.origin])), [steered[place] for place in range(len(directions))]


def _with_zero(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.zeros_like(rows[:1])])


def _difference(values: Tensor) -> Tensor:
    return values[:-1] - values[-1:]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_buffers()), **dict(module.named_parameters())}
