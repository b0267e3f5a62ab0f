"""Random small networks from torch.nn, with all that people put into one: input of the whole-network laws."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, int, int]
MOST_FEATURES = 300

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(-0.7),
    lambda: nn.LeakyReLU(1.5, inplace=True),
    lambda: nn.PReLU(init=0.3),
    lambda: nn.ELU(2.0),
    lambda: nn.CELU(0.5),
    nn.SELU,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.SiLU,
    nn.Mish,
    lambda: nn.Softplus(2.0, 5.0),
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.ReLU6,
    nn.Softsign,
    nn.Identity,
)


class Residual(nn.Module):
    """alpha skip(x) + beta body(x), in the ways in which people write it."""

    def __init__(self, skip: nn.Module, body: nn.Module, style: str, alpha: float, beta: float) -> None:
        super().__init__()
        self.skip, self.body, self.style, self.alpha, self.beta = skip, body, style, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        skipped = self.skip(x)
        if self.style == "scaled":
            return self.alpha * skipped + self.beta * self.body(x.clone())
        out: Tensor = self.body(x.clone())
        if self.style == "in-place":
            out += skipped
            return out
        return skipped - out if self.style == "difference" else torch.add(skipped, out, alpha=self.beta)


class Side(nn.Module):
    """Branches side by side along the channels, or a maximum beside a minimum."""

    def __init__(self, *branches: nn.Module, style: str) -> None:
        super().__init__()
        self.branches, self.style = nn.ModuleList(branches), style

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x.clone()) for branch in self.branches]
        if self.style == "maxmin":
            return torch.cat([torch.maximum(parts[0], parts[1]), torch.minimum(parts[0], parts[1])], dim=1)
        return torch.maximum(parts[0], parts[1]) if self.style == "maximum" else torch.cat(parts, dim=1)


class Moved(nn.Module):
    """Coordinates moved, dropped, repeated or sorted."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        match self.style:
            case "flip":
                return x.flip(2).roll(1, 3)
            case "halves":
                first, second = x[:, : c // 2], x[:, c // 2 :]
                return torch.cat([second, torch.relu(first)], dim=1)
            case "sort":
                return x.reshape(n, c // 2, 2, h, w).sort(dim=2).values.reshape(n, c, h, w)
            case "crop":
                return x[:, :, : max(1, h - 1)].abs()
            case "pad":
                return functional.pad(x, (1, 0, 0, 2), value=0.5)
            case "nearest":
                return functional.interpolate(x, scale_factor=2)
            case "transpose":
                return x.transpose(2, 3)
            case "centred":
                return x - x.mean((2, 3), keepdim=True)
        return x.clamp(-0.5, 0.75)


class Builder:
    """Draws layers until the network is deep enough; every draw comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.shared: dict[tuple[Shape, Shape], nn.Module] = {}

    def network(self) -> tuple[nn.Module, Shape]:
        """A network in evaluation mode and the shape of its input."""
        rng = self.rng
        shape: Shape = (rng.choice([1, 2, 3]), *rng.choice([(1, 1), (1, 3), (2, 2), (4, 4), (5, 3), (6, 6)]))
        start = shape
        layers, shape = self.chain(shape, rng.randint(1, 5), depth=0)
        head: list[nn.Module] = [nn.Flatten()] if rng.random() < 0.7 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        width = shape[0] * (shape[1] * shape[2] if len(head) == 1 else 1)
        head.append(nn.Linear(width, rng.randint(2, 4), bias=rng.random() < 0.8))
        if rng.random() < 0.15:
            head.append(rng.choice([nn.Tanh(), nn.Softmax(dim=1), nn.LogSigmoid()]))
        model = nn.Sequential(*layers, *head)
        self.randomise(model)
        return model.eval(), start

    def chain(self, shape: Shape, count: int, depth: int) -> tuple[list[nn.Module], Shape]:
        layers: list[nn.Module] = []
        for _ in range(count):
            layer = self.layer(shape, depth)
            with torch.no_grad():
                try:
                    after = layer.eval()(torch.zeros(2, *shape)).shape[1:]
                except (RuntimeError, ValueError):
                    continue  # this layer does not fit here
            if 0 < after.numel() <= MOST_FEATURES:
                layers.append(layer)
                shape = (after[0], after[1], after[2])
        return layers, shape

    def layer(self, shape: Shape, depth: int) -> nn.Module:
        rng, draw = self.rng, self.rng.random()
        if draw < 0.25:
            return self.convolution(shape)
        if draw < 0.35:
            return nn.Sequential(nn.BatchNorm2d(shape[0], affine=rng.random() < 0.7))
        if draw < 0.55:
            return rng.choice(ACTIVATIONS)()
        if draw < 0.65:
            return self.pooling()
        if draw < 0.72:
            styles = ["flip", "halves", "sort", "crop", "pad", "nearest", "transpose", "centred", "clamp"]
            return Moved(rng.choice(styles))
        if draw < 0.78 and (shape, shape) in self.shared:
            return self.shared[shape, shape]
        if depth >= 2:
            return self.convolution(shape)
        if draw < 0.93:
            return self.residual(shape, depth)
        bodies = [nn.Sequential(*self.chain(shape, 2, depth + 1)[0]) for _ in range(2)]
        return Side(*bodies, style=rng.choice(["cat", "maxmin", "maximum"]))

    def convolution(self, shape: Shape) -> nn.Module:
        rng, channels = self.rng, shape[0]
        groups = rng.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        out = groups * rng.randint(1, 2)
        two = lambda low, high: (rng.randint(low, high), rng.randint(low, high))  # noqa: E731
        if rng.random() < 0.1:
            return nn.ConvTranspose2d(channels, out, two(1, 3), two(1, 2), two(0, 1), groups=groups)
        if rng.random() < 0.5:
            layer: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=rng.random() < 0.5)
            self.shared[shape, shape] = layer
            return layer
        mode = rng.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
        if rng.random() < 0.15:
            return nn.Conv2d(channels, out, two(1, 4), padding="same", dilation=two(1, 2), groups=groups)
        return nn.Conv2d(
            channels, out, two(1, 4), two(1, 5), two(0, 2), two(1, 2), groups, rng.random() < 0.5, padding_mode=mode
        )

    def pooling(self) -> nn.Module:
        rng = self.rng
        match rng.randint(0, 4):
            case 0:
                return nn.MaxPool2d(rng.randint(1, 3), rng.randint(1, 4), rng.randint(0, 1), rng.randint(1, 2))
            case 1:
                return nn.MaxPool2d(2, ceil_mode=True)
            case 2:
                return nn.AvgPool2d(
                    rng.randint(1, 3), rng.randint(1, 3), rng.randint(0, 1), rng.random() < 0.5, rng.random() < 0.5
                )
            case 3:
                return nn.AdaptiveAvgPool2d((rng.randint(1, 4), rng.randint(1, 4)))
        return nn.AdaptiveMaxPool2d(rng.randint(1, 2))

    def residual(self, shape: Shape, depth: int) -> nn.Module:
        rng = self.rng
        style = rng.choice(["in-place", "plain", "scaled", "difference"])
        layers, after = self.chain(shape, rng.randint(1, 4), depth + 1)
        alpha, beta = rng.choice([1.0, 0.5, -2.0]), rng.choice([1.0, 0.1, -3.0])
        skip: nn.Module = nn.Identity()
        if after != shape:
            if after[1:] == shape[1:]:
                skip = nn.Conv2d(shape[0], after[0], 1)
            elif after[1:] == ((shape[1] + 1) // 2, (shape[2] + 1) // 2):
                skip = nn.Sequential(nn.Conv2d(shape[0], after[0], 1, stride=2, bias=False), nn.BatchNorm2d(after[0]))
            else:
                skip = nn.Sequential(nn.AdaptiveAvgPool2d((after[1], after[2])), nn.Conv2d(shape[0], after[0], 1))
        return Residual(skip, nn.Sequential(*layers), style, alpha, beta)

    def randomise(self, model: nn.Module) -> None:
        """Ordinary weights mostly, and tiny, huge or zero ones now and then; statistics that are not trivial."""
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(generator=self.generator)  # type: ignore[union-attr]
                    module.running_var.uniform_(1e-3, 3, generator=self.generator)  # type: ignore[union-attr]
            for parameter in model.parameters():
                parameter.normal_(generator=self.generator).mul_(0.6)
                draw = self.rng.random()
                parameter.mul_(0.0 if draw < 0.03 else 1e-30 if draw < 0.05 else 1e30 if draw < 0.06 else 1.0)


def random_network(seed: int) -> tuple[nn.Module, Shape]:
    """The network of that seed, in evaluation mode, and the shape of its input."""
    return Builder(seed).network()
