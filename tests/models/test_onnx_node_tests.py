"""The node tests of the onnx package, for every supported operator."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustres.errors import ModelError

onnx = pytest.importorskip("onnx")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from robustres.models.sources.onnx.file import NEWEST  # noqa: E402
from robustres.models.sources.onnx.graph import _Reader  # noqa: E402
from robustres.models.sources.onnx.registry import OPERATORS  # noqa: E402
from robustres.models.sources.onnx.traced import Known, Recorder, Traced  # noqa: E402

# Allowed messages of refusals, and the reason for each.
REFUSALS = {
    "that depends on the images": "a shape, axes or a weight computed from the image is not supported",
    "tf_crop_and_resize": "a region of interest has no counterpart in a classifier",
    "has further outputs in use": "indices of pooling and masks of dropout are not supported",
    "maximum or minimum of no numbers": "images are not empty",
    "is not a supported operator": "an operator inside a function that is not supported",
    "larger than a transposed": "an output padded beyond what the transpose gives",
    "for more than a transposed convolution gives": "the same",
    "depending on the images": "a branch that depends on the image",
    "batch_dims": "gathering in each image separately",
    "uses a reduction": "scattering with a reduction",
    "unsupported kind": "sequences, strings and sparse tensors",
    "tensor type": "types of fewer than 8 bits and strings",
    "not a list of integers": "the same",
}
TYPES = {np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")}


@cache
def cases() -> dict[str, list[Any]]:
    """All single-operator tests with arrays of types that torch supports, grouped by operator."""
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, list[Any]] = {}
    for case in load_model_tests(kind="node"):
        kinds = {node.op_type for node in case.model.graph.node}
        opset = next((entry.version for entry in case.model.opset_import if entry.domain == ""), 0)
        if any(node.domain for node in case.model.graph.node) or not kinds <= set(OPERATORS):
            continue
        arrays = [array for pair in case.data_sets for side in pair for array in side]
        if not all(isinstance(array, np.ndarray) and array.dtype in TYPES for array in arrays):
            continue
        if all(onnx.defs.get_schema(kind, opset, "").since_version <= NEWEST for kind in kinds):
            found.setdefault(sorted(kinds)[0] if len(kinds) == 1 else "several", []).append(case)
    return found


def answers(case: Any, inputs: list[np.ndarray], *, traced: bool) -> Iterator[np.ndarray]:
    """The results of the reader for a test: with all inputs known, or with floating-point inputs recorded."""
    recorder = Recorder((2,))
    file = SimpleNamespace(path=Path("none"), functions={}, fixed_batch=None)
    reader = _Reader(file, recorder)  # type: ignore[arg-type]
    scope: dict[str, Any] = {}
    fed = []
    for value, array in zip(case.model.graph.input, inputs, strict=False):
        tensor = torch.from_numpy(array.copy())
        scope[value.name] = Known((tensor,))
        if traced and tensor.is_floating_point():
            fed.append(tensor)
            place = recorder._graph.placeholder(f"input_{len(fed)}")
            scope[value.name] = Traced(recorder, place, (tensor.to("meta"),))
    wanted = [value.name for value in case.model.graph.output]
    opset = next(entry.version for entry in case.model.opset_import if entry.domain == "")
    with torch.no_grad():
        reader.run(case.model.graph.node, wanted, scope, min(opset, NEWEST), {}, depth=0)
        results = [scope[name] for name in wanted]
        recorder._graph.output([result.node for result in results if isinstance(result, Traced)])
        computed = iter(torch.fx.GraphModule(recorder._root, recorder._graph)(*fed))
    for result in results:
        yield (next(computed) if isinstance(result, Traced) else result.values[0]).numpy()


@pytest.mark.parametrize("kind", ["several", *sorted(OPERATORS)])
def test_an_operator_gives_the_results_that_onnx_expects(kind: str) -> None:
    compared = 0
    for case in cases().get(kind, []):
        for traced in (False, True):
            for inputs, expected in case.data_sets:
                found, said = [], ""
                try:
                    found = list(answers(case, inputs, traced=traced))
                except ModelError as error:
                    said = str(error)
                assert not said or any(reason in said for reason in REFUSALS), f"{case.name}: {said}"
                if said:
                    continue
                for one, other in zip(found, expected, strict=True):
                    assert (one.dtype, one.shape) == (other.dtype, other.shape), case.name
                    tolerance = 2e-3 if other.dtype == np.float16 else max(case.rtol, 1e-3)
                    np.testing.assert_allclose(one, other, rtol=tolerance, atol=1e-5, err_msg=case.name)
                    compared += math.prod(one.shape)
    assert compared or not cases().get(kind)
