"""Properties in the format of the verification competition (VNN-LIB 1): a box of inputs and forbidden outputs.

Supported are `declare-const X_i Real` and `Y_i`, `(assert (<= X_i number))` and `>=`, and, for outputs, comparisons of
two outputs or of one output and a number, alone or in `(or (and ...) ...)`. Anything else is refused.
"""

import gzip
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustres.certify.local.output_property import Forbidden
from robustres.errors import DataError


@dataclass(frozen=True, eq=False)
class Property:
    """lower, upper: (n,) float64, the box rounded outwards. cases: forbidden outputs, any of which is a violation."""

    lower: Tensor
    upper: Tensor
    cases: tuple[Forbidden, ...]


def read_vnnlib(path: Path) -> Property:
    """The property in a file, plain or compressed with gzip; DataError says what cannot be parsed."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the property {path}: {error}") from error
    return _property(_parsed(re.sub(r";[^\n]*", "", text)))


def _parsed(text: str) -> list[Any]:
    """Nested lists of the words between parentheses."""
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
    return stack[0]


def _property(statements: list[Any]) -> Property:
    names = [s[1] for s in statements if s[:1] == ["declare-const"]]
    inputs, outputs = (sum(name.startswith(letter) for name in names) for letter in ("X_", "Y_"))
    if not inputs or not outputs or inputs + outputs != len(names):
        raise DataError("a property declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ... and nothing else")
    lower, upper = [-math.inf] * inputs, [math.inf] * inputs
    both: list[list[list[Any]]] = []
    for statement in statements:
        if statement[:1] == ["declare-const"]:
            continue
        if statement[:1] != ["assert"] or len(statement) != 2:
            raise DataError(f"a property consists of declare-const and assert, got {statement[:1]}")
        claim = statement[1]
        if claim[0] in ("<=", ">=") and len(claim) == 3 and str(claim[1]).startswith("X_"):
            place, value = _place(claim[1], inputs), _number(claim[2])
            if claim[0] == "<=":
                upper[place] = min(upper[place], math.nextafter(value, math.inf))
            else:
                lower[place] = max(lower[place], math.nextafter(value, -math.inf))
        else:
            both.append([_atoms(case) for case in claim[1:]] if claim[0] == "or" else [_atoms(claim)])
    if not all(map(math.isfinite, [*lower, *upper])):
        raise DataError("every input of a property needs a lower and an upper bound")
    cases: list[list[Any]] = [[]]
    for choices in both:
        cases = [[*left, *right] for left in cases for right in choices]
    forbidden = tuple(_forbidden(case, outputs) for case in cases)
    low, high = (torch.tensor(side, dtype=torch.float64) for side in (lower, upper))
    if not both or bool((low > high).any()):
        raise DataError("a property needs a non-empty box and a condition on the outputs")
    return Property(low, high, forbidden)


def _atoms(claim: list[Any]) -> list[Any]:
    if claim[0] == "and":
        return [atom for part in claim[1:] for atom in _atoms(part)]
    if claim[0] not in ("<=", ">=") or len(claim) != 3:
        raise DataError(f"a condition on outputs is <= or >= of two of them, got {claim[0]}")
    return [claim]


def _forbidden(atoms: list[Any], outputs: int) -> Forbidden:
    """left <= right as (left - right) y <= limit; a number on either side is moved to the limit, rounded up."""
    rows, limits = torch.zeros(len(atoms), outputs, dtype=torch.float64), torch.zeros(len(atoms), dtype=torch.float64)
    for place, (relation, first, second) in enumerate(atoms):
        smaller, larger = (first, second) if relation == "<=" else (second, first)
        for side, sign in ((smaller, 1.0), (larger, -1.0)):
            if str(side).startswith("Y_"):
                rows[place, _place(side, outputs)] += sign
            else:
                limits[place] -= sign * _number(side)
        if limits[place] != 0:
            limits[place] = math.nextafter(float(limits[place]), math.inf)
    return Forbidden(rows, limits)


def _place(name: Any, count: int) -> int:
    digits = str(name)[2:]
    if not digits.isdigit() or int(digits) >= count:
        raise DataError(f"the property refers to {name}, which it does not declare")
    return int(digits)


def _number(word: Any) -> float:
    try:
        return float(word)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected a number in the property, got {word}") from error
