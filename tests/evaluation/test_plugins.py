"""The user's own attacks and certificates take part in a run like the built-in ones, with all checks."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import APGD, DDN, PGD
from robustres.certify import NETWORK, Guarantee, NetworkCertificate, RadiusColumn, certify
from robustres.data import ImageSet, load_data
from robustres.errors import DefectiveBoundError, InputError, SandwichViolationError
from robustres.evaluation import Settings, evaluate
from robustres.evaluation.plan import planned_attacks
from robustres.evaluation.provenance import identity
from robustres.models import LoadedModel, load_model
from robustres.reports import write_comparison, write_report
from robustres.threat import Norm, ThreatModel

EPS: dict[Norm, tuple[float, ...]] = {"linf": (0.05, 0.1)}


@dataclass(frozen=True)
class Negative:
    """Propose the negative image, which lies far outside the ball."""

    threat: ThreatModel
    name: str = "negative"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return 1 - x


@dataclass(frozen=True)
class Fixed:
    """Claim the same radius for every sample."""

    radius: float = 0.0
    name: str = "fixed"
    function: str = NETWORK
    norm: Norm = "l2"
    shift: int = 0
    guarantee: Guarantee = field(default_factory=Guarantee)

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        with torch.no_grad():
            answer = (model(x).argmax(dim=1) + self.shift) % 10
        radius = torch.full((len(x),), self.radius, dtype=torch.float64)
        return RadiusColumn(radius, answer, (self.name,) * len(x), self.function, self.norm, self.guarantee)


@pytest.fixture
def model() -> LoadedModel:
    torch.manual_seed(0)
    return load_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), input_shape=(1, 8, 8))


@pytest.fixture
def data() -> ImageSet:
    return load_data("digits", limit=24)


def test_an_object_a_class_and_an_import_path_are_accepted_as_attacks(
    model: LoadedModel, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Same:\n    threat: object\n    name: str = 'same'\n"
        "    times: int = 1\n    def __call__(self, model, x, y, *, indices):\n        return self.times * x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    threat = ThreatModel("linf", 0.2)
    settings = Settings(
        eps=EPS,
        attacks=("fgsm", Negative, PGD(threat, steps=3), "mine:Same"),
        attack_settings={"mine:Same": {"times": 1}},
        part_size=16,
    )
    run = evaluate(model, data, tmp_path / "run", settings)
    found = {(row["attack"], row["eps"]) for row in run.summary["attacks"]}
    assert found == {(name, eps) for name in ("fgsm", "negative", "same") for eps in EPS["linf"]} | {("pgd", 0.2)}
    rows = run.attacks[run.attacks["attack"] == "negative"]
    assert rows.loc[rows["fooled"], "distance"].max() <= 0.1
    assert rows["verified"].all()
    assert not run.attacks.loc[run.attacks["attack"] == "same", "distance"].between(1e-9, 10).any()
    again = evaluate(model, data, tmp_path / "run", settings)
    assert again.summary == run.summary
    other = evaluate(model, data, tmp_path / "other", replace(settings, attacks=("fgsm",), attack_settings={}))
    page = write_comparison({"mine": run.folder.path, "other": other.folder.path}, tmp_path / "both").read_text()
    assert "negative" in write_report(tmp_path / "run").read_text()
    assert "fgsm" in page


def test_columns_carry_function_norm_and_guarantee(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    """Nothing is inferred from a name, here one that begins like that of a smoothed classifier."""
    ours = Fixed(1e-9, name="smoothed by nobody")
    vote = Fixed(9.0, name="vote", function="the vote", norm="linf", guarantee=Guarantee(0.001))
    run = evaluate(model, data, tmp_path, Settings(eps=EPS, attacks=("fgsm",), certificate=("best", ours, vote)))
    table = run.certificates.groupby(["certificate", "function", "norm", "guarantee"]).size()
    assert set(table.index) == {
        ("best", NETWORK, "l2", "deterministic"),
        ("best", NETWORK, "linf", "deterministic"),
        ("smoothed by nobody", NETWORK, "l2", "deterministic"),
        ("vote", "the vote", "linf", "probability 1 - 0.001"),
    }
    assert run.summary["sandwich"]["violations"] == 0
    assert "the vote" in write_report(tmp_path).read_text()


def test_an_own_certificate_of_the_network_is_compared_with_attacks(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(SandwichViolationError, match="`fixed` certified"):
        evaluate(model, data, tmp_path, Settings(eps={"l2": (2.0,)}, attacks=("pgd",), certificate=Fixed(5.0)))


def test_certificates_that_contradict_each_other_are_a_defect(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    pair = (Fixed(0.1), Fixed(0.2, name="other", shift=1))
    with pytest.raises(DefectiveBoundError, match="different answers"):
        evaluate(model, data, tmp_path, Settings(eps={"l2": (0.1,)}, attacks=(), certificate=pair))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attacks": ("pgdd",)}, "unknown attack 'pgdd'"),
        ({"attacks": ("pgd",), "attack_settings": {"pgd": {"stepz": 3}}}, "no setting 'stepz'"),
        ({"diagnose": 5, "attack_settings": {"pgd": {"stepz": 3}}}, "no setting 'stepz'"),
        ({"attack_settings": {"pgd": {"steps": 3}}}, "not among the attacks"),
        ({"attack_settings": {"apgd": {"steps": 3}}}, "not among the attacks"),
        ({"attacks": (object(),)}, "an attack is a name, or an object"),
        ({"attacks": ("nowhere:Mine",)}, "cannot import nowhere:Mine"),
        ({"attacks": ("fgsm", "fgsm")}, "two attacks are called 'fgsm'"),
        ({"certificate": "lipshitz"}, "lipschitz, best, local or"),
        ({"certificate": ("best", 3)}, "a certificate is a name, or an object"),
    ],
)
def test_settings_are_checked_at_construction(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Settings(**{"eps": EPS, **settings})


def test_another_setting_of_an_own_attack_is_another_run(model: LoadedModel, data: ImageSet) -> None:
    def known(attack: Any) -> dict[str, Any]:
        return identity(model, data, Settings(eps=EPS, attacks=(attack,)))

    threat = ThreatModel("linf", 0.1)
    assert known(Negative(threat)) == known(Negative(threat))
    assert known(Negative(threat)) != known(Negative(threat, name="other"))
    assert known(PGD(threat, steps=3)) != known(PGD(threat, steps=4))
    settings = [Settings(eps=EPS, certificate=NetworkCertificate(norm=norm)) for norm in ("l2", "linf")]
    assert identity(model, data, settings[0]) != identity(model, data, settings[1])


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.body(x)
        return logits


def test_the_attack_receives_a_whole_part_so_that_its_batches_stay_full(tmp_path: Path) -> None:
    """One slot per sample: a fooled sample makes room at once for the next one of the part."""
    net = Counting().eval()
    data = load_data("digits", limit=320)
    labels = net(data.images).argmax(dim=1)
    data = ImageSet(data.images, labels, data.class_names, "digits as the network answers them")
    settings = Settings(eps={"linf": (0.3,)}, attacks=("apgd",), certify=False, batch_size=64)
    calls = []
    for part_size in (None, 64):
        net.calls = 0
        evaluate(LoadedModel(net, "counting", "0", 0), data, tmp_path / str(part_size),
                 replace(settings, part_size=part_size), cache=False)  # fmt: skip
        calls.append(net.calls)
    assert calls[1] >= 5 * 100  # in every batch of 64 some samples use all 100 steps
    # 58 samples use all steps; in the order of the data, 64 slots would need at least 124 gradients.
    assert calls[0] <= 132, calls


def test_an_attack_that_does_not_fit_restarts_with_half_the_batch() -> None:
    class Small(nn.Module):
        """Run out of memory with more than four images."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                raise torch.OutOfMemoryError
            logits: Tensor = self.last(x.flatten(1))
            return logits

    data = load_data("digits", limit=30)
    threat = ThreatModel("l2", 0.3)
    found = [PGD(threat, steps=5, batch_size=size)(Small().eval(), data.images, data.labels).fooled for size in (30, 4)]
    assert found[0].equal(found[1])


class Gradients(nn.Module):
    """Run out of memory when differentiated on more than 16 images, from the given call on."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.fits, self.differentiated, self.failures = nn.Linear(64, 10), fits, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and len(x) > 16 and self.differentiated >= self.fits:
            self.failures += 1
            raise torch.OutOfMemoryError
        self.differentiated += len(x) if x.requires_grad else 0
        logits: Tensor = self.last(x.flatten(1))
        return logits


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_the_progress_of_a_search_is_kept_when_memory_runs_out(attack: type[PGD] | type[APGD]) -> None:
    data, threat = load_data("digits", limit=64), ThreatModel("l2", 0.2)
    whole, cut = Gradients(10**9).eval(), Gradients(300).eval()
    labels = whole(data.images).argmax(dim=1)
    expected, found = (attack(threat, batch_size=40)(net, data.images, labels) for net in (whole, cut))
    assert found.fooled.equal(expected.fooled)
    assert found.gradient_evaluations.equal(expected.gradient_evaluations)
    torch.testing.assert_close(found.examples, expected.examples)
    assert cut.failures == 2  # 40, then 20; 10 fit
    assert cut.differentiated == whole.differentiated  # nothing was computed again


def test_local_radii_take_part_in_a_run_beside_those_of_the_network(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    settings = Settings(eps=EPS, attacks=("pgd",), certificate="best", seconds_per_image=0.5)
    rows = evaluate(model, data, tmp_path, settings).certificates
    assert sorted(set(rows["certificate"])) == ["best", "local"]
    linf = rows[rows["norm"] == "linf"].pivot(index="index", columns="certificate", values="radius")
    assert bool((linf["local"] >= linf["best"]).all())
    assert certify(model.module, data.images[:2], norm="linf", certificate="local", seconds=0.5).radius.tolist() == (
        pytest.approx(linf["local"].tolist()[:2], rel=0.03)
    )


def test_local_certificates_receive_the_distances_of_adversarial_examples(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Told:
        """Radii slightly below or above the given distances of examples."""

        factor: float
        name: str = "told"
        distances: Mapping[int, float] = field(default_factory=dict)
        norm: Norm = "linf"

        def beside(self, distances: Mapping[int, float], proved: Mapping[int, tuple[float, str]]) -> "Told":
            return replace(self, distances=distances)

        def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
            assert indices is not None
            radius = torch.tensor([self.factor * self.distances.get(int(i), 0.0) for i in indices], dtype=torch.float64)
            return RadiusColumn(radius, model(x).argmax(dim=1), ("told",) * len(x), NETWORK, "linf", Guarantee())

    settings = Settings(eps=EPS, attacks=("pgd",), certificate=Told(0.5))
    found = evaluate(model, data, tmp_path / "short", settings)
    answers = found.attacks["index"].map(found.certificates.set_index("index")["prediction"])
    attacks = found.attacks[found.attacks["fooled"] & (found.attacks["adversarial_prediction"] != answers)]
    radii = found.certificates.set_index("index")["radius"]
    nearest = attacks.groupby("index")["linf"].min()
    assert len(nearest) > 0
    assert radii[nearest.index].tolist() == pytest.approx((0.5 * nearest).tolist())
    with pytest.raises(
        SandwichViolationError
    ):  # certificates computed after the attacks are compared with them all the same
        evaluate(model, data, tmp_path / "beyond", replace(settings, certificate=Told(1.01)))


def test_local_radii_aim_at_the_requested_eps(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    settings = Settings(eps=EPS, attacks=("pgd",), certificate="local", seconds_per_image=0.5, aim_at_eps=True)
    aimed = evaluate(model, data, tmp_path / "aimed", settings).certificates
    free = evaluate(model, data, tmp_path / "free", replace(settings, aim_at_eps=False)).certificates
    for norm, counted in settings.counted_eps().items():
        radii, most = (rows[rows["norm"] == norm].set_index("index")["radius"] for rows in (aimed, free))
        for eps in counted:  # an affine network: both are exact up to the last two per cent of the free search
            assert bool((radii[most >= eps] >= eps).all())
        assert bool((radii <= max(counted)).all())
        assert bool((radii >= min(counted)).any())


def test_minimum_norm_is_an_attribute_of_the_class_and_not_inferred_from_its_name() -> None:
    @dataclass(frozen=True)
    class Nearest(DDN):
        kind = "nearest"

    settings = Settings(eps={"l2": (0.1, 0.2)}, attacks=("ddn", Nearest, "pgd"))
    planned = [(attack.name, attack.threat.eps) for attack in planned_attacks(settings)]
    assert planned == [("ddn", math.inf), ("nearest", math.inf), ("pgd", 0.1), ("pgd", 0.2)]
