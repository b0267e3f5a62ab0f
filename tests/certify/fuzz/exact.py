"""Piecewise linear programs with exactly known constants: rational Jacobians on every cell that lines meet.

Along a line the activation pattern changes where a pre-activation crosses 0, and these crossings are rational numbers,
so the cells of a line are listed without gaps; with one input the list is exhaustive. Bounds are compared with them
without any tolerance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tests.certify.fuzz.constants import constant
from tests.certify.fuzz.draft import Below
from tests.certify.fuzz.program import Program, Shape

KINDS = ("normal", "normal", "near one", "near one", "whole", "some zero", "unequal scales", "1e-160", "1e150")
Row = list[Fraction]
Rule = Callable[["Cell", list["Form"]], "Form"]


@dataclass
class Form:
    """Numbers as affine functions of the position t on a line: value and slope, and their gradients in the input."""

    at: Row
    along: Row
    gradients: list[Row]


class Cell:
    """One piece of a line: the point at which the program is evaluated, and the largest extent of the piece."""

    def __init__(self, t: Fraction, sides: Fraction) -> None:
        self.t, self.end, self.flat = t, sides, False

    def factor(self, value: Fraction, slope: Fraction, left: Fraction, right: Fraction) -> Fraction:
        """The slope of a kinked activation at this point; the cell ends where its argument crosses 0."""
        here = value + self.t * slope
        if slope and (crossing := -value / slope) > self.t:
            self.end = min(self.end, crossing)
        if here == 0 and slope:
            return right if slope > 0 else left  # just after the crossing
        self.flat |= here == 0
        return right if here > 0 else left


class ExactProgram:
    """A program and the rules for its exact evaluation."""

    def __init__(self, below: Below) -> None:
        self.below, self.program = below, Program().eval()
        self.inputs = self.number(1, 3)
        self.image = below(2) == 1
        self.rules: list[tuple[Rule, tuple[int, ...]]] = []
        self.widths = [self.inputs]
        for _ in range(self.number(2, 9)):
            WRITERS[below(len(WRITERS))](self)
        self.linear(len(self.widths) - 1, self.number(1, 3))
        self.program.answer = f"v{len(self.widths) - 1}.flatten(1)"

    @property
    def input_shape(self) -> Shape:
        """(n,) or (n, 1, 1)."""
        return (self.inputs, 1, 1) if self.image else (self.inputs,)

    def number(self, low: int, high: int) -> int:
        """An integer."""
        return low + self.below(high - low + 1)

    def value(self) -> int:
        """A value, mostly the newest."""
        last = len(self.widths) - 1
        return last if self.below(3) else self.below(last + 1)

    def tensor(self, shape: Shape, kinds: tuple[str, ...] = KINDS) -> Tensor:
        """A constant."""
        return constant(kinds[self.below(len(kinds))], shape, torch.Generator().manual_seed(self.below(2**16)))

    def write(self, expression: str, rule: Rule, operands: tuple[int, ...], width: int) -> None:
        """Add one line and its exact rule."""
        text = expression.format(*("x" if k == 0 else f"v{k}" for k in operands))
        self.program.lines.append(f"v{len(self.widths)} = {text}")
        self.rules.append((rule, operands))
        self.widths.append(width)

    def keep(self, values: Tensor, narrow: bool = False) -> tuple[str, Tensor]:
        """The name of a constant, and its values in float64; a narrow constant is a plain float32 tensor."""
        name = f"c{len(list(self.program.buffers())) + sum(isinstance(v, Tensor) for v in vars(self.program).values())}"
        kept = values.to(torch.float32) if narrow else values
        if bool(torch.isfinite(kept).all()) and narrow:
            setattr(self.program, name, kept)
            return f"self.{name}", kept.to(torch.float64)
        self.program.register_buffer(name, values)
        return f"self.{name}", values

    def linear(self, source: int, width: int, kinds: tuple[str, ...] = KINDS) -> None:
        """A dense layer, or a 1 x 1 convolution."""
        name, matrix = self.keep(self.tensor((width, self.widths[source]), kinds))
        bias_name, bias = self.keep(self.tensor((width,), ("normal", "zeros", "whole")))
        text = f"F.linear({{}}, {name}, {bias_name})"
        if self.image:
            text = f"F.conv2d({{}}, {name}[:, :, None, None], {bias_name})"
        rows, shift = exact(matrix), exact(bias)
        self.write(text, lambda cell, forms: _mapped(rows, forms[0], shift), (source,), width)

    def layer(self) -> None:
        """A dense layer of any width."""
        self.linear(self.value(), self.number(1, 3))

    def cancelling(self) -> None:
        """Two consecutive layers whose products cancel up to the last bits."""
        self.linear(self.value(), self.number(1, 3), ("near one",))
        self.linear(len(self.widths) - 1, self.number(1, 2), ("near one",))

    def tiny_and_huge(self) -> None:
        """Layers with extreme norms whose product is an ordinary number."""
        width = self.number(1, 2)
        for scale in ((-160, -160, 150, 150), (150, 150, -160, -160), (-160, 150, -160, 150))[self.below(3)]:
            self.linear(len(self.widths) - 1, width, (f"1e{scale}",))
            if self.below(2):
                self.kink(len(self.widths) - 1)

    def residual(self) -> None:
        """A block whose branch clips some values, on an input that may be far from 0."""
        entry = self.value()
        if self.below(2):
            self.kink(entry)
            entry = len(self.widths) - 1
        self.linear(entry, self.widths[entry])
        if self.below(2):
            self.cut(len(self.widths) - 1)
        if self.below(2):
            self.kink(len(self.widths) - 1)
            self.linear(len(self.widths) - 1, self.widths[entry])
        self.total(entry, len(self.widths) - 1)

    def kink(self, source: int | None = None) -> None:
        """ReLU, |x| or LeakyReLU, occasionally of a value shifted far away."""
        source = self.value() if source is None else source
        spelt, left = ((("torch.relu({})"), 0), ("torch.abs({})", -1), ("F.leaky_relu({}, 0.25)", Fraction(1, 4)))[
            self.below(3)
        ]
        shift = (0, 0, 0, -30)[self.below(4)]
        text = spelt.format("{}" if not shift else "{} - 30.0")

        def rule(cell: Cell, forms: list[Form]) -> Form:
            form = forms[0]
            shifted = [value + shift for value in form.at]
            factors = [
                cell.factor(value, slope, Fraction(left), Fraction(1))
                for value, slope in zip(shifted, form.along, strict=True)
            ]
            return _scaled(factors, Form(shifted, form.along, form.gradients))

        self.write(text, rule, (source,), self.widths[source])

    def total(self, a: int | None = None, b: int | None = None) -> None:
        """alpha a + beta b."""
        a = self.value() if a is None else a
        b = next(k for k in (self.value() if b is None else b, a) if self.widths[k] == self.widths[a])
        alpha, beta = ((1.0, 1.0), (1.0, -1.0), (-1.0, 0.1), (2.0, 1e-160), (0.3, 1.0))[self.below(5)]
        text = "{} + {}" if (alpha, beta) == (1.0, 1.0) else f"{alpha!r} * {{}} + {beta!r} * {{}}"
        factors = Fraction(alpha), Fraction(beta)
        self.write(text, lambda cell, forms: _sum(factors, forms), (a, b), self.widths[a])

    def scaled(self) -> None:
        """A product with, or a quotient by, one constant per element."""
        source = self.value()
        width = self.widths[source]
        name, values = self.keep(self.tensor((width,), ("normal", "near one")) + 0.0, narrow=self.below(2) == 1)
        operand = f"{name}[:, None, None]" if self.image else name
        divide = self.below(2) == 1 and bool((values != 0).all())
        factors = [1 / c if divide else c for c in exact(values)]
        text = f"{{}} / {operand}" if divide else f"{operand} * {{}}"
        self.write(text, lambda cell, forms: _scaled(factors, forms[0]), (source,), width)

    def cut(self, source: int | None = None) -> None:
        """The first or last elements, with zeros in place of the others."""
        source = self.value() if source is None else source
        width = self.widths[source]
        gone = self.number(0, width - 1)
        front = self.below(2) == 1
        tail = "0, 0, 0, 0, " if self.image else ""
        kept = range(gone, width) if front else range(width - gone)
        pads = f"[{tail}0, {gone}]" if self.below(2) == 1 else f"[{tail}{gone}, 0]"
        order: list[int | None] = [*kept, *[None] * gone] if pads.endswith(f"0, {gone}]") else [*[None] * gone, *kept]
        self._moved(f"F.pad({{}}[:, {kept.start}:{kept.stop}], {pads})", source, order)

    def turned(self) -> None:
        """In reverse, or rolled."""
        source = self.value()
        order = list(range(self.widths[source]))
        if self.below(2):
            self._moved("{}.flip([1])", source, [*order[::-1]])
        else:
            self._moved("torch.roll({}, 1, 1)", source, [*order[-1:], *order[:-1]])

    def joined(self) -> None:
        """Two values concatenated."""
        a, b = self.value(), self.value()
        if self.widths[a] + self.widths[b] > 4:
            return

        def rule(cell: Cell, forms: list[Form]) -> Form:
            a, b = forms
            return Form(a.at + b.at, a.along + b.along, a.gradients + b.gradients)

        self.write("torch.cat([{}, {}], 1)", rule, (a, b), self.widths[a] + self.widths[b])

    def averaged(self) -> None:
        """The mean, kept as one number."""
        source = self.value()
        width = self.widths[source]
        rows = [[Fraction(1, width)] * width]
        self.write("{}.mean(1, keepdim=True)", lambda cell, forms: _mapped(rows, forms[0], [Fraction(0)]), (source,), 1)

    def _moved(self, text: str, source: int, order: list[int | None]) -> None:
        zero = Fraction(0)

        def rule(cell: Cell, forms: list[Form]) -> Form:
            form = forms[0]
            none = [zero] * len(form.gradients[0])
            return Form(
                [zero if k is None else form.at[k] for k in order],
                [zero if k is None else form.along[k] for k in order],
                [none if k is None else form.gradients[k] for k in order],
            )

        self.write(text, rule, (source,), len(order))

    def cells(self, start: Row, direction: Row, most: int = 40) -> Iterator[list[Row]]:
        """The Jacobians on the cells that the line start + t direction meets for t >= 0, in order."""
        t, far = Fraction(0), Fraction(10) ** 40
        for _ in range(most):
            cell = Cell(t, far)
            identity = [[Fraction(int(i == j)) for j in range(self.inputs)] for i in range(self.inputs)]
            forms = [Form(list(start), list(direction), identity)]
            for rule, operands in self.rules:
                forms.append(rule(cell, [forms[k] for k in operands]))
            if not cell.flat:
                yield forms[-1].gradients
            if cell.end >= far:
                return
            t = cell.end


WRITERS: tuple[Callable[[ExactProgram], None], ...] = (
    *(ExactProgram.layer,) * 3,
    *(ExactProgram.kink,) * 3,
    *(ExactProgram.total,) * 3,
    *(ExactProgram.scaled, ExactProgram.cut, ExactProgram.cut, ExactProgram.turned),
    *(ExactProgram.joined, ExactProgram.averaged, ExactProgram.residual, ExactProgram.residual, ExactProgram.residual),
    *(ExactProgram.cancelling, ExactProgram.tiny_and_huge),
)


def exact(values: Tensor) -> list:  # type: ignore[type-arg]
    """The elements of a tensor as fractions, with the same nesting."""
    nested = values.tolist()
    return [[Fraction(v) for v in row] if isinstance(row, list) else Fraction(row) for row in nested]


def _mapped(rows: list[Row], form: Form, shift: Row) -> Form:
    dot = lambda row, column: sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0))  # noqa: E731
    columns = list(zip(*form.gradients, strict=True))
    return Form(
        [dot(row, form.at) + c for row, c in zip(rows, shift, strict=True)],
        [dot(row, form.along) for row in rows],
        [[dot(row, column) for column in columns] for row in rows],
    )


def _scaled(factors: Row, form: Form) -> Form:
    return Form(
        [f * v for f, v in zip(factors, form.at, strict=True)],
        [f * v for f, v in zip(factors, form.along, strict=True)],
        [[f * v for v in row] for f, row in zip(factors, form.gradients, strict=True)],
    )


def _sum(factors: tuple[Fraction, Fraction], forms: list[Form]) -> Form:
    a, b = (_scaled([factor] * len(form.at), form) for factor, form in zip(factors, forms, strict=True))
    add = lambda left, right: [x + y for x, y in zip(left, right, strict=True)]  # noqa: E731
    gradients = [add(left, right) for left, right in zip(a.gradients, b.gradients, strict=True)]
    return Form(add(a.at, b.at), add(a.along, b.along), gradients)


def exceeds_linf(jacobian: list[Row], bound: float) -> bool:
    """Whether the norm from linf to linf exceeds the bound."""
    return any(sum(map(abs, row)) > Fraction(bound) for row in jacobian)


def exceeds_l2(jacobian: list[Row], bound: float) -> bool:
    """Whether the largest singular value exceeds the bound: bound^2 I - J^T J is then not positive semidefinite."""
    size = len(jacobian[0])
    square = Fraction(bound) ** 2
    matrix = [[square * (i == j) - sum(row[i] * row[j] for row in jacobian) for j in range(size)] for i in range(size)]
    for k in range(size):  # elimination without rounding; a zero pivot needs a zero row
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and any(matrix[k][j] for j in range(k, size))):
            return True
        for i in range(k + 1, size):
            factor = matrix[i][k] / pivot if pivot else Fraction(0)
            matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[k], strict=True)]
    return False
