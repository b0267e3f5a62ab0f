"""Third-party networks: the ResNets of torchvision and timm, unchanged."""

import importlib
from time import process_time

import pytest

from robustres.certify import lipschitz
from robustres.certify.blocks.parallel_paths import region
from robustres.certify.graph.capture import capture
from robustres.certify.graph.network import Merge, chain, dominators
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.graph.simplify import simplified
from robustres.errors import UnsupportedOperationError

# Library, name, residual blocks with an identity and with a projection shortcut.
NETWORKS = [
    ("torchvision.models", "resnet18", 5, 3),
    ("torchvision.models", "resnet50", 12, 4),
    ("torchvision.models", "resnext50_32x4d", 12, 4),
    ("timm.models", "resnet18", 5, 3),
    ("timm.models", "resnet26t", 4, 4),
    ("timm.models", "resnet50", 12, 4),
    ("timm.models", "resnetv2_50", 12, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "identities", "projections"), NETWORKS)
def test_every_residual_block_of_a_known_network_is_found(
    library: str, name: str, identities: int, projections: int
) -> None:
    models = pytest.importorskip(library)
    captured = capture(getattr(models, name)(), (3, 64, 64))
    network, refused = build_network(captured)
    assert network is not None, refused
    output = simplified(network)
    order = output.ordered()
    dominator = dominators(order)
    merges = [node for node in chain(dominator, order[0], output) if isinstance(node.piece, Merge)]
    kinds = [region(dominator, node).kind for node in merges]
    assert kinds.count("residual (identity)") == identities
    assert kinds.count("residual (projection)") == projections
    assert len(kinds) == identities + projections


@pytest.mark.slow
def test_every_group_normalisation_is_refused_with_its_location() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(UnsupportedOperationError) as caught:
        lipschitz(timm.create_model("resnetv2_50d_gn"), (3, 64, 64))
    assert all("group_norm" in refusal.operation for refusal in caught.value.refused)
    assert len({refusal.path for refusal in caught.value.refused}) > 40


@pytest.mark.slow
def test_resnet18_at_full_size_is_bounded_within_two_minutes_of_two_cores() -> None:
    model = importlib.import_module("torchvision.models").resnet18()
    start = process_time()
    report = lipschitz(model, (3, 224, 224))
    assert process_time() - start < 240
    assert [row.name for row in report.residual_blocks] == [
        f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert 0 < report.lower <= report.upper < float("inf")
