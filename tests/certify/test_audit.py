"""Audits of layers that are wrong by construction, of correct layers, and of claims that stay open."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from robustres.certify import certify, lipschitz
from robustres.certify.audits.audit import AuditReport, AuditRow, audit
from robustres.certify.lower.ascent import Search, strongest_witness
from robustres.certify.lower.witness import Measured, safe_ratios
from robustres.certify.maps.convolution import Convolution
from robustres.certify.proof.bound import Bound
from robustres.errors import InputError, ModelError

QUICK = Search(rounds=1, lanczos_steps=30, ascent_steps=15, seconds=1000)
SHAPE = (3, 8, 8)


def quick_audit(
    model: nn.Module, shape: tuple[int, ...], claimed: float | dict[str, float] | None = 1.0, **settings: float
) -> AuditReport:
    return audit(model, shape, claimed=claimed, restarts=4, search=QUICK, effort=0.05, **settings)  # type: ignore[arg-type]


def only(report: AuditReport) -> AuditRow:
    (row,) = report.rows
    return row


def assert_refuted(model: nn.Module, shape: tuple[int, ...], claimed: float = 1.0) -> AuditRow:
    """Assert that the claim is refuted, and that the witness shows it without any code of the audit."""
    report = quick_audit(model, shape, claimed)
    row = only(report)
    assert report.verdict == row.verdict == "refuted"
    wide, witness = model.eval().to(torch.float64), row.witness
    with torch.no_grad():
        change = wide(witness.other[None]) - wide(witness.x[None])
    ratio = float(change.norm() / (witness.other - witness.x).norm())
    assert claimed < row.bound.lower <= ratio * (1 + 1e-12)
    assert row.bound.lower == pytest.approx(ratio, rel=1e-6)
    assert ratio <= row.bound.upper * (1 + 1e-9)
    return row


def test_the_progress_of_an_audit_is_reported_by_claim_and_by_piece() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    told: list[tuple[str, int, int]] = []
    audit(model, (4,), claimed={"0": 9.0, "": 9.0}, restarts=1, search=QUICK, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "claims"] == [("claims", done, 2) for done in range(3)]
    assert {total for stage, _, total in told if stage == "blocks"} >= {1, 2}


def exact_norm(weight: Tensor, side: int) -> float:
    padding = weight.shape[-1] // 2
    map_ = Convolution(weight.detach(), (weight.shape[1], side, side), padding=((padding, padding), (padding, padding)))
    return float(torch.linalg.matrix_norm(map_.dense(), ord=2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_spectral_norm_parametrisation_of_a_convolution_is_refuted() -> None:
    layer = nn.Conv2d(3, 6, 3, padding=1)
    row = assert_refuted(parametrizations.spectral_norm(layer, n_power_iterations=50), SHAPE)
    assert row.bound.lower == pytest.approx(exact_norm(layer.weight, 8), rel=1e-4)


def test_ten_steps_of_power_iteration_are_refuted() -> None:
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64)
    v = torch.randn(1, 16, 8, 8, dtype=torch.float64)
    for _ in range(10):
        image = functional.conv2d(v, weight, padding=1)
        v = functional.conv_transpose2d(image, weight, padding=1)
        v = v / v.norm()
    estimate = functional.conv2d(v, weight, padding=1).norm()
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    layer.weight.data = (weight / estimate).float()
    assert exact_norm(layer.weight, 8) > 1.005
    assert_refuted(layer, (16, 8, 8))


def test_reflect_padding_with_a_factor_for_zero_padding_is_refuted() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False)
    layer.weight.data = torch.ones(1, 1, 3, 3)
    layer.weight.data /= exact_norm(layer.weight, 5)
    assert_refuted(layer, (1, 5, 5))


def test_an_ignored_batch_normalisation_is_refuted() -> None:
    convolution, normalisation = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    convolution.weight.data /= exact_norm(convolution.weight, 8)
    normalisation.running_var.fill_(0.25)  # type: ignore[union-attr]
    assert_refuted(nn.Sequential(convolution, normalisation, nn.ReLU()), SHAPE)


def test_the_constant_1_is_refuted_for_overlapping_and_proven_for_disjoint_max_pooling() -> None:
    assert_refuted(nn.MaxPool2d(3, stride=2), SHAPE)
    assert quick_audit(nn.MaxPool2d(2), SHAPE).verdict == "proven"


class Normalise(nn.Module):
    def __init__(self, std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / self.std


def test_the_largest_of_unequal_deviations_is_refuted_and_the_smallest_is_proven() -> None:
    row = assert_refuted(Normalise((0.2, 0.25, 0.4)), SHAPE, claimed=1 / 0.4)
    assert row.bound.lower == pytest.approx(1 / 0.2, rel=1e-5)
    assert quick_audit(Normalise((0.2, 0.25, 0.4)), SHAPE, 1 / 0.2).verdict == "proven"


def test_an_orthogonal_layer_is_proven() -> None:
    layer = parametrizations.orthogonal(nn.Linear(12, 12))
    report = quick_audit(layer, (12,))
    assert report.verdict == "proven"
    row = only(report)
    assert row.bound.upper == pytest.approx(1, abs=1e-5)
    assert row.bound.lower == pytest.approx(row.bound.upper, rel=1e-5)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4))


def test_a_claim_between_the_attained_value_and_the_bound_stays_open() -> None:
    row = only(quick_audit(two_layers(), SHAPE, 1e-3))
    between = math.sqrt(row.bound.lower * row.bound.upper)
    assert row.bound.lower < 0.999 * between
    assert quick_audit(two_layers(), SHAPE, between).verdict in {"open", "refuted"}
    assert row.verdict == "refuted"
    torch.manual_seed(0)
    assert quick_audit(two_layers(), SHAPE, row.bound.upper * 0.999).verdict == "open"


def test_a_table_of_claims_is_audited_layer_by_layer() -> None:
    model = two_layers()
    truth = {"0": exact_norm(model[0].weight, 8), "3": float(torch.linalg.matrix_norm(model[3].weight.detach(), ord=2))}
    report = quick_audit(model, SHAPE, {"0": truth["0"] * 1.02, "3": truth["3"] * 0.98, "1": 1.0})
    assert [(row.name, row.verdict) for row in report.rows] == [("0", "proven"), ("3", "refuted"), ("1", "proven")]
    assert report.verdict == "refuted"
    frame = report.to_frame()
    assert list(frame["lower"])[:2] == pytest.approx([truth["0"], truth["3"]], rel=1e-3)
    assert set(frame["guarantee"]) == {"deterministic"}


class Stated(nn.Module):
    """A convolution that states a bound of 1 regardless of its weights."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.layer.weight.data *= scale / exact_norm(self.layer.weight, 8)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x)
        return answer

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return Bound(0.0, 1.0, "stated")


@pytest.mark.parametrize(("scale", "verdict"), [(0.97, "proven"), (1.03, "refuted")])
def test_a_statement_is_audited_and_never_trusted(scale: float, verdict: str) -> None:
    assert quick_audit(Stated(scale), SHAPE, None).verdict == verdict
    assert quick_audit(Stated(scale), SHAPE, 1.0).verdict == verdict
    inside = quick_audit(nn.Sequential(nn.ReLU(), Stated(scale), nn.Flatten()), SHAPE, None)
    assert [(row.name, row.claimed, row.verdict) for row in inside.rows] == [("1", 1.0, verdict)]


def test_an_operation_without_a_rule_leaves_a_claim_open_and_can_still_be_refuted() -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erfinv(0.5 * torch.tanh(x)).flatten(1)

    row = only(quick_audit(Strange(), (4,), 5.0))
    assert row.verdict == "open"
    assert row.bound.upper == math.inf
    assert [refusal for refusal in row.refused if "erfinv" in refusal.operation]
    assert quick_audit(Strange(), (4,), 0.1).verdict == "refuted"


def test_the_callers_model_and_the_global_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (quick_audit(model, SHAPE, 1.0).rows[0].bound.lower for _ in range(2))
    assert first == second
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    stated = Stated(1.0)
    quick_audit(stated, SHAPE, None)
    assert stated.lipschitz_bound(SHAPE).upper == 1.0


def test_the_search_comes_close_to_the_steepest_linear_piece_of_a_small_network() -> None:
    """For V relu(W x), the largest norm of V diag(mask) W over all masks that some input attains."""
    W, V = torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    inputs = torch.randn(20_000, 3, dtype=torch.float64)
    masks = torch.unique(inputs @ W.T > 0, dim=0).double()
    truth = float(torch.linalg.matrix_norm(V @ (masks[:, :, None] * W), ord=2).max())
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False)).double()
    model[0].weight.data, model[2].weight.data = W, V
    measured = Measured(model, inputs[:1])
    witness = strongest_witness(
        measured, inputs[:32], search=Search(rounds=3, batch_size=32, ascent_steps=60, seconds=1000)
    )
    assert 0.93 * truth <= witness.ratio <= truth


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_tiny_and_huge_weights_are_judged_like_others(scale: float) -> None:
    layer = nn.Linear(6, 5)
    layer.weight.data = torch.linalg.qr(torch.randn(6, 5)).Q.T.contiguous() * scale
    layer.bias.data.zero_()
    assert quick_audit(layer, (6,), scale * 1.001).verdict == "proven"
    assert quick_audit(layer, (6,), scale * 0.999).verdict == "refuted"


def test_cancellation_is_not_mistaken_for_a_refutation() -> None:
    class Offset(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1e9) - 1e9

    x = torch.rand(5, 4, dtype=torch.float64)
    near = x + 1e-6 * torch.randn_like(x)
    offset = Offset()
    raw = (offset(near) - offset(x)).norm(dim=1) / (near - x).norm(dim=1)
    assert bool((raw > 1.0 + 1e-5).any())
    assert bool((safe_ratios(Measured(offset, x), x, near) <= 1.0).all())
    assert only(quick_audit(offset, (4,))).verdict != "refuted"


def test_a_network_that_narrows_inside_is_refused() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().double()

    with pytest.raises(ModelError, match="narrower than float64"):
        quick_audit(Narrow(), (4,))


@pytest.mark.parametrize(
    ("claimed", "word"),
    [
        (None, "nothing is claimed"),
        ({}, "nothing is claimed"),
        ({"9": 1.0}, "no layer called '9'"),
        (-1.0, "at least 0"),
        (math.nan, "at least 0"),
        ({"0": "1"}, "at least 0"),
    ],
)
def test_claims_that_cannot_be_audited_are_refused_in_one_sentence(
    claimed: float | dict[str, float] | None, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        quick_audit(two_layers(), SHAPE, claimed)


def test_images_must_fit_and_layers_must_be_called() -> None:
    with pytest.raises(InputError, match="images must have the shape"):
        audit(two_layers(), SHAPE, claimed=1.0, images=torch.rand(2, 1, 8, 8))

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.used(x)
            return answer

    with pytest.raises(InputError, match="'spare' is never called"):
        quick_audit(Spare(), (4,), {"spare": 1.0})


class Scaled(nn.Module):
    """A layer times a constant that is created in float32 at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.tensor([2.0, 1.0, 1.0]) + torch.zeros(3)


def test_a_constant_that_is_created_in_float32_is_no_cast() -> None:
    assert audit(Scaled(), (3,), claimed=1e-3, restarts=1).verdict == "refuted"
    assert audit(Scaled(), (3,), claimed=9.0, restarts=1).verdict == "proven"


def test_a_random_module_has_no_constant_to_refute() -> None:
    class Random(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.rand(1, dtype=x.dtype)

    with pytest.raises(ModelError, match="changes from call to call"):
        audit(Random(3, 3), (3,), claimed=100.0, restarts=1)


@pytest.mark.parametrize("shape", [None, 4, "4", (-1,), (4.0,), (4, 0)])
def test_something_else_than_a_shape_is_refused_as_such(shape: Any) -> None:
    for call in (lipschitz, partial(audit, claimed=1.0)):
        with pytest.raises(InputError, match="input_shape must be the sides of one input"):
            call(nn.Linear(4, 3), shape)
    for images in (torch.rand(0, 4), torch.rand(2, 4).to_sparse()):
        with pytest.raises(InputError, match="dense batch"):
            certify(nn.Linear(4, 3), images)
