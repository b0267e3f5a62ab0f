"""Small random networks of every operation with a relaxation, and the smallest values found by descent."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from robustres.certify.graph.capture import Captured, capture
from robustres.certify.local.local_radii import program_of
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Question
from robustres.certify.local.sets import Region
from robustres.threat import Norm

SHAPE = (1, 2, 3)
F = nn.functional


class Drawn(nn.Module):
    """Linear layers, the operation twice with a shortcut around the second, three logits."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 8, after: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(after, width)
        self.last, self.operation = nn.Linear(after, 3), operation
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x.flatten(1))
        answer: Tensor = self.last(self.operation(a + self.second(self.operation(a))))
        return answer


class Convolved(nn.Module):
    """A convolution, normalisation, the operation on maps of (4, 2, 3) and a residual block."""

    def __init__(self, operation: Callable[[Tensor], Tensor], size: int = 24) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.operation = nn.Conv2d(4, 4, 1), operation
        self.last = nn.Linear(size, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.first(x)))
        answer: Tensor = self.last(self.operation(a + self.inner(a)).flatten(1))
        return answer


class Slopes(nn.PReLU):
    """A slope for each of eight values."""

    def __init__(self) -> None:
        super().__init__(8)


class Gate(nn.Module):
    """Squeeze and excitation: every channel times a function of the means of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, a: Tensor) -> Tensor:
        return a * torch.sigmoid(self.outer(torch.relu(self.inner(a.mean((2, 3))))))[:, :, None, None]


class Attention(nn.Module):
    """Six pixels of four channels attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Linear(4, 12)

    def forward(self, a: Tensor) -> Tensor:
        query, key, value = self.parts(a.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) / 2).softmax(dim=2)
        return (weights @ value).transpose(1, 2).reshape_as(a)


OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Drawn(torch.relu),
    "leaky relu": lambda: Drawn(lambda a: F.leaky_relu(a, 0.2)),
    "falling leaky relu": lambda: Drawn(lambda a: F.leaky_relu(a, -0.5)),
    "parametric relu": lambda: Drawn(Slopes()),
    "absolute value": lambda: Drawn(torch.abs),
    "clamp": lambda: Drawn(lambda a: a.clamp(-0.5, 0.7)),
    "relu6": lambda: Drawn(lambda a: F.relu6(4 * a)),
    "sigmoid": lambda: Drawn(lambda a: torch.sigmoid(3 * a)),
    "tanh": lambda: Drawn(torch.tanh),
    "gelu": lambda: Drawn(F.gelu),
    "silu": lambda: Drawn(F.silu),
    "softplus": lambda: Drawn(F.softplus),
    "elu": lambda: Drawn(F.elu),
    "hardswish": lambda: Drawn(lambda a: F.hardswish(3 * a)),
    "hardsigmoid": lambda: Drawn(lambda a: F.hardsigmoid(3 * a)),
    "sine": lambda: Drawn(torch.sin),
    "sort": lambda: Drawn(lambda a: a.reshape(-1, 2, 4).sort(dim=2).values.flatten(1)),
    "maximum": lambda: Drawn(lambda a: torch.maximum(a[:, :4], a[:, 4:]), after=4),
    "minimum": lambda: Drawn(lambda a: torch.minimum(a[:, :4], a[:, 4:]), after=4),
    "largest of two": lambda: Drawn(lambda a: a.reshape(-1, 2, 4).amax(dim=1), after=4),
    "convolution": lambda: Convolved(torch.relu),
    "max-pooling": lambda: Convolved(lambda a: F.max_pool2d(a, 2), 4),
    "average pooling": lambda: Convolved(lambda a: F.avg_pool2d(torch.relu(a), 2), 4),
    "product": lambda: Drawn(lambda a: a[:, :4] * a[:, 4:], after=4),
    "gated linear unit": lambda: Drawn(lambda a: F.glu(a, dim=1), after=4),
    "silu by hand": lambda: Drawn(lambda a: a * torch.sigmoid(2 * a)),
    "square": lambda: Drawn(lambda a: a.square() / 2),
    "power": lambda: Drawn(lambda a: (1 + a.abs()) ** 1.5 - a**3 / 4),
    "root": lambda: Drawn(lambda a: (1 + a * a).sqrt() + (1 + a * a).rsqrt()),
    "exponential": lambda: Drawn(lambda a: torch.exp(a / 2)),
    "logarithm": lambda: Drawn(lambda a: torch.log(0.5 + a.abs())),
    "reciprocal": lambda: Drawn(lambda a: a + 1 / (-0.5 - a.square().mean(dim=1, keepdim=True))),
    "quotient": lambda: Drawn(lambda a: a / (0.3 + a.square().mean(dim=1, keepdim=True))),
    "softmax": lambda: Drawn(lambda a: (3 * a).softmax(dim=1)),
    "logarithmic softmax": lambda: Drawn(lambda a: a.log_softmax(dim=1)),
    "layer normalisation": lambda: Drawn(nn.LayerNorm(8)),
    "root mean square": lambda: Drawn(nn.RMSNorm(8, eps=1e-3)),
    "unit length": lambda: Drawn(lambda a: F.normalize(a, dim=1)),
    "group normalisation": lambda: Convolved(nn.GroupNorm(2, 4)),
    "instance normalisation": lambda: Convolved(nn.InstanceNorm2d(4, affine=True)),
    "squeeze and excitation": lambda: Convolved(Gate()),
    "attention": lambda: Convolved(Attention()),
    "concatenation": lambda: Convolved(lambda a: torch.cat([torch.relu(a), torch.tanh(a)], dim=1), 48),
}


@cache
def captured(name: str) -> Captured:
    """The network of the operation, captured once; other weights are then loaded into it."""
    return capture(OPERATIONS[name](), SHAPE)


def drawn(name: str, seed: int) -> tuple[Program, nn.Module]:
    """The network with random weights, in float64; valid until the next one of this name is drawn."""
    whole = captured(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in [*whole.module.parameters(), *whole.module.buffers()]:
            if values.is_floating_point():
                values.copy_(1.5 * torch.randn(values.shape, generator=generator) / max(1, values[:1].numel()) ** 0.5)
        for key, values in whole.module.named_buffers():
            if "running_var" in key:
                values.abs_().add_(0.3)
    return program_of(whole), whole.module


def questions(made: Program, norm: Norm, seed: int) -> Iterator[tuple[Question, float]]:
    """For a random image: is a random difference of logits above a limit just above its smallest known value? No proof
    may confirm this. Each question comes with the width of the observed interval, for scale.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64)
    eps = {"linf": 0.15, "l2": 0.4, "l1": 0.7}[norm] * (0.3 + float(torch.rand((), generator=generator)))
    region = Region.ball(centre, eps, norm)
    rows = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    least, most = smallest(made, region, rows, generator)
    yield Question(region, rows, least + 1e-9), float((most - least).max())


def smallest(made: Program, region: Region, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(R,): the smallest and largest values of the rows found by random points and descent, all attained."""
    points = inside(region, 400, generator)
    with torch.no_grad():
        seen = made.values(points)[-1] @ rows.T
    least, most = seen.amin(0), seen.amax(0)
    for row in range(len(rows)):
        x = points[seen[:, row].argsort()[:12]].clone()
        step = 0.3 * float(region.eps[0])
        for _ in range(40):
            with torch.enable_grad():
                x.requires_grad_()
                (slope,) = torch.autograd.grad((made.values(x)[-1] @ rows[row]).sum(), x)
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
            direction = slope.sign() if region.norm == "linf" else slope / length
            x = onto(region, x.detach() - step * direction)
            step *= 0.88
            with torch.no_grad():
                least[row] = torch.minimum(least[row], (made.values(x)[-1] @ rows[row]).amin())
    return least, most


def inside(region: Region, count: int, generator: torch.Generator) -> Tensor:
    """Random points of the region of one sample, most of them on its boundary."""
    d = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    d = d.sign() if region.norm == "linf" else d
    return onto(region, region.centre + 10 * float(region.eps[0]) * d)


def onto(region: Region, x: Tensor) -> Tensor:
    """Each point moved towards the centre into the ball, then clipped to [0, 1]."""
    d, eps = x - region.centre, float(region.eps[0])
    if region.norm == "linf":
        d = d.clamp(-eps, eps)
    else:
        order = {"l2": 2.0, "l1": 1.0}[region.norm]
        length = torch.linalg.vector_norm(d.flatten(1), ord=order, dim=1).reshape(-1, 1, 1, 1)
        d = d * (eps / length).clamp_max(1.0)
    return torch.minimum(torch.maximum(region.centre + d * (1 - 1e-12), region.lower), region.upper)
