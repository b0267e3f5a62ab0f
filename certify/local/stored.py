"""A certificate as bytes and back, so that it can be proved again elsewhere. What is read is never trusted.

The bytes are a NumPy archive without pickled objects. Slopes and multipliers are kept as they were proved; where a
search would go on from is not kept.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.graph.network import Node
from robustres.certify.local.certificate import Certificate
from robustres.certify.local.evidence import Branch, Evidence, Quadratic, Split
from robustres.certify.local.intermediate import Helped
from robustres.certify.local.program import Program
from robustres.certify.local.steps import Activation, Product
from robustres.errors import InputError
from robustres.threat import Norm

FORMAT = 1
# Largest size of an unpacked archive.
MOST_BYTES = 2 * 2**30

Arrays = dict[str, NDArray[Any]]


def certificate_bytes(certificate: Certificate, program: Program) -> bytes:
    """Everything that `proved_radius` needs besides the network."""
    arrays: Arrays = {
        "format": np.array(FORMAT),
        "image": _array(certificate.image.to(torch.float64)),
        "label": np.array(certificate.label),
        "norm": np.array(certificate.norm),
        "eps": np.array(certificate.eps, dtype=np.float64),
        "steps": np.array(len(program.steps)),
    }
    for place, helped in certificate.evidence.helped.items():
        arrays |= _prefixed(f"helped/{place}", _helped_arrays(helped))
    for number, quadratic in enumerate(certificate.evidence.quadratics):
        arrays |= _prefixed(f"quadratic/{number}", _quadratic_arrays(quadratic, program))
    for place, shared in certificate.evidence.shared.items():
        arrays |= {f"shared/{place}/{at}": _array(values) for at, values in shared.items()}
    for row, tree in certificate.evidence.trees.items():
        arrays |= _prefixed(f"tree/{row}", _tree_arrays(tree, program))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **cast(dict[str, Any], arrays))
    return content.getvalue()


def read_certificate(content: bytes, program: Program) -> Certificate:
    """The certificate written by `certificate_bytes`; InputError if the bytes are none, or one for another network."""
    with _understood():
        return _certificate(_arrays(content), program)


def image_shape(content: bytes) -> tuple[int, ...]:
    """(*shape) of the image that a certificate is about; InputError if the bytes are not a certificate."""
    with _understood():
        return tuple(_arrays(content)["image"].shape)


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, EOFError, OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"the certificate cannot be read ({type(error).__name__}: {error})") from error


def _arrays(content: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MOST_BYTES:
        raise ValueError(f"it unpacks to {size} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _certificate(arrays: Arrays, program: Program) -> Certificate:
    if int(arrays["format"]) != FORMAT:
        raise ValueError(f"format {arrays['format']}, this version reads {FORMAT}")
    norm, image, eps = str(arrays["norm"]), _tensor(arrays["image"], program), float(arrays["eps"])
    if norm not in get_args(Norm):
        raise ValueError(f"norm {norm!r}")
    if int(arrays["steps"]) != len(program.steps) or tuple(image.shape) != program.steps[0].shape:
        raise ValueError("it is about a network of another structure")
    if image.dtype != torch.float64 or not bool(torch.isfinite(image).all()) or not 0 < eps < math.inf:
        raise ValueError("the image and eps must be finite")
    return Certificate(image, int(arrays["label"]), cast(Norm, norm), eps, _evidence(arrays, program))


def _evidence(arrays: Arrays, program: Program) -> Evidence:
    helped = {int(key): _helped(part, program, int(key)) for key, part in _parts(arrays, "helped")}
    quadratics = tuple(_quadratic(part, program) for _, part in _parts(arrays, "quadratic"))
    trees = {int(key): _tree(part, program) for key, part in _parts(arrays, "tree")}
    rows = program.steps[-1].shape[0] - 1
    if not all(0 <= row < rows for row in [*trees, *(row for one in quadratics for row in one.rows)]):
        raise ValueError("rows that the network does not have")
    shared = {int(key): _shared(part, program) for key, part in _parts(arrays, "shared")}
    return Evidence(helped, quadratics, trees, shared)


def _shared(arrays: Arrays, program: Program) -> dict[int, Tensor]:
    found = {_whole(at): _tensor(values, program) for at, values in arrays.items()}
    for at, values in found.items():
        _require(
            at < len(program.steps) and isinstance(program.steps[at], Activation | Product),
            "multipliers of activations",
        )
        _require(values.ndim == 1 and values.is_floating_point(), "multipliers that are numbers")
        _require(len(values) == math.prod(program.steps[at].shape), "multipliers of the activation's shape")
    return found


def _helped_arrays(helped: Helped) -> Arrays:
    arrays = {"coordinates": _array(helped.coordinates), "signs": _array(helped.signs.to(torch.int8))}
    return {**arrays, **{f"slopes/{at}": _array(values) for at, values in helped.slopes.items()}}


def _helped(arrays: Arrays, program: Program, place: int) -> Helped:
    coordinates, signs = (_tensor(arrays[name], program) for name in ("coordinates", "signs"))
    _require(0 < place < len(program.steps) and coordinates.ndim == signs.ndim == 1, "places of bounds")
    _require(len(coordinates) == len(signs) and bool((signs.abs() == 1).all()), "signs of bounds")
    _require(_within(coordinates, math.prod(program.steps[place].shape)), "coordinates of bounds")
    slopes = {int(at): _tensor(values, program) for at, values in _named(arrays, "slopes")}
    _require_shapes(slopes, program, len(coordinates))
    return Helped(coordinates.long(), signs.to(torch.float64), slopes)


def _quadratic_arrays(quadratic: Quadratic, program: Program) -> Arrays:
    arrays = {"rows": np.array(quadratic.rows), "scales": np.array(quadratic.scales)}
    return arrays | _point_arrays(quadratic.point, program)


def _quadratic(arrays: Arrays, program: Program) -> Quadratic:
    rows, scales = tuple(arrays["rows"].tolist()), tuple(arrays["scales"].tolist())
    _require(len(rows) == len(scales) > 0 and all(isinstance(row, int) for row in rows), "rows of a quadratic")
    return Quadratic(rows, scales, _point(arrays, program))


def _point_arrays(point: FixedPoint, program: Program) -> Arrays:
    number = {node: place for place, node in enumerate(program.order)}
    arrays: Arrays = {"value": np.array(point.value)}
    for name, values in _by_node(point):
        arrays |= {f"{name}/{number[node]}": _array(value) for node, value in values.items()}
    return arrays if point.weights is None else {**arrays, "weights": _array(point.weights)}


def _by_node(point: FixedPoint) -> list[tuple[str, Mapping[Node, Tensor]]]:
    return [("multipliers", point.multipliers), ("sizes", point.sizes), ("tangents", point.tangents)]


def _point(arrays: Arrays, program: Program) -> FixedPoint:
    by_node = {
        name: {program.order[_whole(place)]: _tensor(values, program) for place, values in _named(arrays, name)}
        for name in ("multipliers", "sizes", "tangents")
    }
    weights = _tensor(arrays["weights"], program) if "weights" in arrays else None
    _require(weights is None or weights.numel() == math.prod(program.steps[0].shape), "weights of pixels")
    multipliers, sizes, tangents = by_node.values()
    return FixedPoint(float(arrays["value"]), multipliers, sizes, torch.empty(0), {}, weights, tangents=tangents)


def _tree_arrays(tree: Branch, program: Program) -> Arrays:
    """Every branch before its parts: its split, or that it is a leaf; then the slopes, multipliers and certificates of
    the leaves."""
    branches = list(_in_order(tree))
    cuts = [
        (one.split.place, one.split.coordinate) if one.parts is not None and one.split else (-1, -1) for one in branches
    ]
    points = [one.split.point if one.split is not None else 0.0 for one in branches]
    leaves = [one for one in branches if one.parts is None or one.split is None]
    splits = [(at, split, value) for at, leaf in enumerate(leaves) for split, value in leaf.multipliers.items()]
    arrays: Arrays = {
        "cuts": np.array(cuts, dtype=np.int64),
        "points": np.array(points, dtype=np.float64),
        "multiplier places": np.array([(at, s.place, s.coordinate) for at, s, _ in splits], dtype=np.int64).reshape(
            -1, 3
        ),
        "multiplier values": np.array([(split.point, value) for _, split, value in splits], dtype=np.float64).reshape(
            -1, 2
        ),
    }
    for place in leaves[0].slopes:
        if all(place in leaf.slopes for leaf in leaves):
            arrays[f"slopes/{place}"] = np.stack([_array(leaf.slopes[place]) for leaf in leaves])
    for at, leaf in enumerate(leaves):
        if leaf.point is not None:
            arrays |= _prefixed(f"certificate/{at}", _point_arrays(leaf.point, program))
    return arrays


def _tree(arrays: Arrays, program: Program) -> Branch:
    cuts, points = arrays["cuts"].tolist(), arrays["points"].tolist()
    _require(len(cuts) == len(points) > 0, "cuts of a tree")
    branches = [Branch(0.0, split=_split(place, at, point, program) if place >= 0 else None)
                for (place, at), point in zip(cuts, points, strict=True)]  # fmt: skip
    waiting: list[tuple[Branch, list[Branch]]] = []
    for branch in branches:  # each is the next part of the latest branch that lacks one
        _require(bool(waiting) != (branch is branches[0]), "a tree with no part too many")
        if waiting:
            above, parts = waiting[-1]
            parts.append(branch)
            if len(parts) == 2:
                above.parts = (parts[0], parts[1])
                waiting.pop()
        if branch.split is not None:
            waiting.append((branch, []))
    _require(not waiting, "a tree with no part missing")
    leaves = [branch for branch in branches if branch.parts is None]
    slopes = {int(at): _tensor(values, program) for at, values in _named(arrays, "slopes")}
    _require_shapes(slopes, program, len(leaves))
    multipliers: list[dict[Split, float]] = [{} for _ in leaves]
    pairs = zip(arrays["multiplier places"].tolist(), arrays["multiplier values"].tolist(), strict=True)
    for (at, place, coordinate), (point, value) in pairs:
        _require(0 <= at < len(leaves), "multipliers of a leaf")
        multipliers[at][_split(place, coordinate, point, program)] = value
    for at, leaf in enumerate(leaves):
        leaf.slopes = {place: values[at] for place, values in slopes.items()}
        leaf.multipliers = multipliers[at]
    for key, part in _parts(arrays, "certificate"):
        _require(_whole(key) < len(leaves), "certificates of leaves")
        leaves[_whole(key)].point = _point(part, program)
    return branches[0]


def _in_order(tree: Branch) -> Iterator[Branch]:
    waiting = [tree]
    while waiting:
        branch = waiting.pop()
        yield branch
        if branch.split is not None and branch.parts is not None:
            waiting += reversed(branch.parts)


def _split(place: int, coordinate: int, point: float, program: Program) -> Split:
    _require(0 <= place < len(program.steps), "cuts of steps")
    step = program.steps[place]
    _require(isinstance(step, Activation) and 0 <= coordinate < math.prod(step.shape), "cuts of activations")
    _require(math.isfinite(point), "finite cuts")
    return Split(place, coordinate, point)


def _require_shapes(slopes: Mapping[int, Tensor], program: Program, count: int) -> None:
    for at, values in slopes.items():
        _require(0 <= at < len(program.steps) and isinstance(program.steps[at], Activation), "slopes of activations")
        _require(tuple(values.shape) == (count, *program.steps[at].shape), "slopes of the activation's shape")
        _require(values.is_floating_point() and bool(torch.isfinite(values).all()), "finite slopes")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"it must hold {what}")


def _within(coordinates: Tensor, size: int) -> bool:
    whole = not coordinates.is_floating_point()
    return whole and (not len(coordinates) or bool((coordinates.amin() >= 0) & (coordinates.amax() < size)))


def _prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}/{name}": values for name, values in arrays.items()}


def _parts(arrays: Arrays, kind: str) -> Iterator[tuple[str, Arrays]]:
    """The arrays of each object of one kind, in order, without the prefix of their names."""
    groups: dict[str, Arrays] = {}
    for name, values in _named(arrays, kind):
        key, _, rest = name.partition("/")
        groups.setdefault(key, {})[rest] = values
    yield from sorted(groups.items(), key=lambda item: _whole(item[0]))


def _named(arrays: Arrays, kind: str) -> Sequence[tuple[str, NDArray[Any]]]:
    return [(name[len(kind) + 1 :], values) for name, values in arrays.items() if name.startswith(f"{kind}/")]


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"a number in the place of {text!r}")
    return int(text)


def _array(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.detach().cpu().numpy()
    return found


def _tensor(values: NDArray[Any], program: Program) -> Tensor:
    return torch.from_numpy(values).to(program.device)
