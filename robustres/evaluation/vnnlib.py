"""Properties in the format of the verification competition: inputs and forbidden outputs in VNN-LIB 1 and 2.

The parser is our own: the package `vnnlib` 1.0.2 does not read VNN-LIB 1, and of VNN-LIB 2 neither the element type
`Real` nor the option `initialized` of the standard's own examples. Numbers are exact decimals, never rounded.
"""

import gzip
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustres.errors import DataError
from robustres.evaluation.forbidden_outputs import Part, parts_of
from robustres.evaluation.formula import Comparison, Formula, Several, Variable, difference, negated, product, total
from robustres.evaluation.formula import number as parsed_number

TYPES = ("float32", "real")


@dataclass(frozen=True)
class Declared:
    """A tensor of VNN-LIB 2: its name in the file, element type and shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Property:
    """parts: regions of inputs, each with the outputs that are forbidden there; all together are the violations.

    inputs: number of inputs. declared: the tensors X and Y of VNN-LIB 2, None for VNN-LIB 1.
    """

    formula: Formula
    parts: tuple[Part, ...]
    inputs: int
    declared: tuple[Declared, Declared] | None

    def violated(self, x: Tensor, y: Tensor) -> bool:
        """Whether these inputs (n,) and outputs (m,) satisfy every assertion, in exact arithmetic."""
        return self.formula.holds({"X": x.tolist(), "Y": y.tolist()})

    def assignment(self, x: Tensor, y: Tensor) -> str:
        """The inputs (n,) and outputs (m,) in the form that the version of the language prescribes."""
        if self.declared is None:
            words = [f"({letter}_{i} {value!r})" for letter, values in (("X", x), ("Y", y))
                     for i, value in enumerate(values.tolist())]  # fmt: skip
            return "(" + "\n".join(words) + ")"
        lines = []
        for one, values in zip(self.declared, (x, y), strict=True):
            lines += [f"{one.name} {one.kind} [{','.join(map(str, one.shape))}]", *map(repr, values.tolist())]
        return "\n".join(lines)


def read_vnnlib(path: Path) -> Property:
    """The property in a file, plain or compressed with gzip; DataError says what cannot be parsed."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the property {path}: {error}") from error
    statements = _parsed(re.sub(r";[^\n]*", "", text))
    if statements and statements[0][:1] == ["vnnlib-version"]:
        return _second(statements)
    return _first(statements)


def _parsed(text: str) -> list[Any]:
    """Nested lists of the words between parentheses; a name with its indices, `X [0, 1]`, is one word."""
    text = re.sub(r"\s*\[([^\]]*)\]", lambda found: "[" + "".join(found[1].split()) + "]", text)
    stack: list[list[Any]] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", text):
        if word == "(":
            stack.append([])
        elif word == ")":
            if len(stack) == 1:
                raise DataError("the property has one closing parenthesis too many")
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(word)
    if len(stack) != 1:
        raise DataError("the property ends inside a parenthesis")
    if not all(isinstance(one, list) and one for one in stack[0]):
        raise DataError("a property consists of statements in parentheses")
    return stack[0]


def _first(statements: list[Any]) -> Property:
    names = [s[1] if s[2:] == ["Real"] else "" for s in statements if s[0] == "declare-const"]
    places = {name: ("X" if name.startswith("X_") else "Y", int(name[2:])) for name in names
              if re.fullmatch(r"[XY]_\d+", name)}  # fmt: skip
    inputs, outputs = (sum(letter == one for one, _ in places.values()) for letter in "XY")
    complete = {("X", i) for i in range(inputs)} | {("Y", i) for i in range(outputs)} == set(places.values())
    if not inputs or not outputs or len(places) != len(names) or not complete:
        raise DataError("a property of VNN-LIB 1 declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ... of type Real")
    rest = [one for one in statements if one[0] != "declare-const"]
    return _property(rest, places.get, (inputs, outputs), None)


def _second(statements: list[Any]) -> Property:
    version, *statements = statements
    if not re.fullmatch(r"<2\.\d+>", str(version[-1])):
        raise DataError(f"of versions of VNN-LIB, 1 and 2 are supported, got {version[-1]}")
    networks = [one for one in statements if one[0] == "declare-network"]
    if len(networks) != 1:
        raise DataError(f"a property must declare one network, got {len(networks)}")
    entries = networks[0][2:]
    if [entry[0] for entry in entries] != ["declare-input", "declare-output"]:
        raise DataError(
            "a network must declare one input and one output; hidden nodes, further tensors and relations to other "
            "networks are not supported"
        )
    declared = _declared(entries[0]), _declared(entries[1])
    rest = [one for one in statements if one[0] != "declare-network"]
    if declared[0].name == declared[1].name:
        raise DataError(f"the input and the output are both named {declared[0].name}")

    def variable(word: str) -> Variable | None:
        for letter, one in zip("XY", declared, strict=True):
            if word.partition("[")[0] == one.name:
                return letter, _flat_index(word, one)
        return None

    return _property(rest, variable, (declared[0].numel, declared[1].numel), declared)


def _declared(entry: list[Any]) -> Declared:
    found = re.fullmatch(r"(\w+)\[([\d,]*)\]", str(entry[2])) if len(entry) == 3 else None
    if found is None:
        raise DataError(f"a tensor is declared by its name, type and shape, got ({' '.join(map(str, entry))})")
    if found[1].lower() not in TYPES:
        raise DataError(f"element types may be {' and '.join(TYPES)}, got {found[1]}")
    return Declared(str(entry[1]), found[1], tuple(map(int, filter(None, found[2].split(",")))))


def _flat_index(word: str, one: Declared) -> int:
    indices = [int(index) for index in re.findall(r"\d+", word[len(one.name) :])]
    written = one.name + (f"[{','.join(map(str, indices))}]" if indices else "")
    inside = all(index < side for index, side in zip(indices, one.shape, strict=False))
    if word != written or len(indices) != len(one.shape) or not inside:
        raise DataError(f"{word} is not an element of {one.name}, whose shape is {list(one.shape)}")
    place = 0
    for index, side in zip(indices, one.shape, strict=True):
        place = place * side + index
    return place


def _property(
    statements: list[Any],
    variable: Callable[[str], Variable | None],
    sizes: tuple[int, int],
    declared: tuple[Declared, Declared] | None,
) -> Property:
    claims = []
    for statement in statements:
        if statement[0] != "assert" or len(statement) != 2:
            raise DataError(f"a property consists of declarations and assertions, got ({statement[0]} ...)")
        claims.append(_formula(statement[1], variable))
    formula = Several("and", tuple(claims))
    return Property(formula, parts_of(formula, *sizes), sizes[0], declared)


def _formula(claim: Any, variable: Callable[[str], Variable | None]) -> Formula:
    relation = claim[0] if isinstance(claim, list) and claim else claim
    if relation in ("and", "or") and len(claim) > 1:
        return Several(relation, tuple(_formula(part, variable) for part in claim[1:]))
    if relation not in ("<=", ">=", "<", ">", "=", "==", "!=") or len(claim) != 3:
        raise DataError(f"a condition is an and, an or or a comparison of two terms, got {relation}")
    left, right = (_term(side, variable) for side in claim[1:])
    less, more = difference(left, right), difference(right, left)
    if relation in ("<=", "<"):
        return Comparison(less, strict=relation == "<")
    if relation in (">=", ">"):
        return Comparison(more, strict=relation == ">")
    both = Comparison(less, strict=relation == "!="), Comparison(more, strict=relation == "!=")
    return Several("or" if relation == "!=" else "and", both)


def _term(term: Any, variable: Callable[[str], Variable | None]) -> Any:
    """The polynomial that a term is."""
    if isinstance(term, str):
        place = variable(term)
        return {(place,): parsed_number("1")} if place is not None else {(): parsed_number(term)}
    sign, *sides = term or [None]
    operands = [_term(side, variable) for side in sides]
    if sign == "+" and operands:
        return total(operands)
    if sign == "-" and operands:
        return difference(operands[0], total(operands[1:])) if len(operands) > 1 else negated(operands[0])
    if sign == "*" and operands:
        return product(operands)
    raise DataError(f"a term is a number, a variable, a sum, a difference or a product, got {sign}")
