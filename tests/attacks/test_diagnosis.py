"""The diagnosis flags models that mask their gradients, and no others."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import APGD, FAB, FGSM, PGD, APGDTargeted, diagnose
from robustres.data import load_data
from robustres.errors import InputError
from robustres.results import typed_table
from robustres.threat import ThreatModel

from .conftest import Case

LINF = ThreatModel("linf", 0.03)


class Rounded(nn.Module):
    """Round the input to 64 levels: the gradient is zero everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(torch.round(x * 64) / 64)
        return logits


def test_an_honest_model_is_not_flagged(small: Case) -> None:
    diagnosis = diagnose(small.model, small.x, small.y, APGDTargeted(LINF, steps=40), queries=50)
    assert not diagnosis.suspicious, diagnosis.findings
    assert "face value" in diagnosis.verdict
    assert diagnosis.suspicious_samples.sum() <= 1


@pytest.mark.filterwarnings("ignore:the gradient of every logit")
def test_a_model_without_gradients_is_flagged_sample_by_sample(small: Case) -> None:
    model = Rounded(small.model).eval()
    diagnosis = diagnose(model, small.x, small.y, APGD(LINF, steps=20), queries=100)
    found = {finding.check for finding in diagnosis.findings if finding.suspicious}
    assert {"zero_gradients", "black_box"} <= found
    assert "Do not trust" in diagnosis.verdict
    assert diagnosis.suspicious_samples.any()


def test_a_diagnosis_and_a_result_print_as_sentences(small: Case) -> None:
    attack = PGD(ThreatModel("linf", 0.02))
    result = attack(*small)
    assert repr(result).startswith(
        f"AttackResult({len(result) - result.robust} of {len(result)} samples fooled, median"
    )
    said = str(diagnose(*small, attack, result=result)).splitlines()
    assert said[0].startswith("No sign of masked gradients")
    assert len(said) == 7
    assert not any(line.startswith("!") for line in said)


def test_a_weak_attack_is_flagged_because_more_steps_help(small: Case) -> None:
    diagnosis = diagnose(small.model, small.x, small.y, FGSM(ThreatModel("linf", 0.01)), queries=20)
    checks = {finding.check: finding for finding in diagnosis.findings}
    names = {"logit_scale", "zero_gradients", "loss_sensitivity", "black_box", "unbounded_eps", "more_steps"}
    assert set(checks) == names
    assert not checks["zero_gradients"].suspicious
    table = typed_table("diagnosis", diagnosis.rows())
    assert len(table) == 6
    assert set(table["attack"]) == {"fgsm"}


def test_an_unbounded_threat_cannot_be_diagnosed(small: Case) -> None:
    with pytest.raises(InputError, match="finite eps"):
        diagnose(small.model, small.x, small.y, FAB(ThreatModel("linf", float("inf"))))


def fitted_to_digits() -> Case:
    """A least-squares linear classifier of the digits, with twelve correctly classified images."""
    digits = load_data("digits", split="train")
    x, y = digits.images.flatten(1), torch.nn.functional.one_hot(digits.labels).float()
    inputs = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solved = torch.linalg.solve(inputs.T @ inputs + 10 * torch.eye(65), inputs.T @ (20 * y - 2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)
    model[1].weight.copy_(solved[:-1].T)
    model[1].bias.copy_(solved[-1])
    right = model(digits.images).argmax(dim=1) == digits.labels
    return Case(model, digits.images[right][:12], digits.labels[right][:12])


@pytest.mark.filterwarnings("ignore:the gradient of every logit")
def test_every_mask_of_the_benchmark_is_flagged_and_the_honest_network_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The masks of the benchmark on a network that is not in its table."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    masking = import_module("masking")
    case, threat = fitted_to_digits(), ThreatModel("linf", 0.05)
    rows = [
        masking.row("linear", name, mask(case.model).eval(), case.x, case.y, threat, queries=60)
        for name, mask in masking.MASKS.items()
    ]
    assert [row.mask for row in rows if not row.named] == []
    assert not masking.row("linear", "none", *case, threat).named
