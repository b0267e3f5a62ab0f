"""Choice of the best radius per sample, and radii that must never be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify.proof.bound import Guarantee
from robustres.certify.radii.certificate import best_radii, certify_best
from robustres.certify.radii.radius_column import NETWORK, RadiusColumn
from robustres.certify.radii.smoothing import RandomisedSmoothing
from robustres.errors import DefectiveBoundError, InputError
from robustres.threat import Norm


def column(
    radius: Sequence[float],
    source: str,
    *,
    prediction: Sequence[int] | None = None,
    function: str = NETWORK,
    norm: Norm = "l2",
    failure: float = 0.0,
) -> RadiusColumn:
    answers = torch.zeros(len(radius), dtype=torch.int64) if prediction is None else torch.tensor(prediction)
    values = torch.tensor(radius, dtype=torch.float64)
    return RadiusColumn(values, answers, (source,) * len(radius), function, norm, Guarantee(failure))


def test_the_largest_radius_of_each_sample_wins_and_its_source_is_kept() -> None:
    (best,) = best_radii([column([0.1, 0.5, 0.0], "global"), column([0.2, 0.5, 0.0], "local")])
    assert best.radius.tolist() == [0.2, 0.5, 0.0]
    assert best.source == ("local", "global", "global")
    assert str(best.guarantee) == "deterministic"


def test_other_functions_norms_and_guarantees_keep_their_own_columns() -> None:
    columns = [
        column([0.1], "global"),
        column([9.0], "smoothed", function="smoothed(sigma=1)", failure=0.001),
        column([8.0], "global with Lanczos", failure=1e-12),
        column([0.05], "rows", norm="linf"),
    ]
    best = best_radii(columns)
    assert [(c.radius.tolist(), c.source) for c in best] == [(c.radius.tolist(), c.source) for c in columns]


@settings(deadline=None, max_examples=50)
@given(
    radii=st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=4),
    failures=st.lists(st.sampled_from([0.0, 1e-12, 1e-3]), min_size=4, max_size=4),
    functions=st.lists(st.sampled_from([NETWORK, "smoothed(sigma=1)"]), min_size=4, max_size=4),
)
def test_no_column_mixes_guarantees_or_functions(
    radii: list[list[float]], failures: list[float], functions: list[str]
) -> None:
    given_columns = [
        column(radius, f"c{i}", failure=failures[i], function=functions[i]) for i, radius in enumerate(radii)
    ]
    by_name = {c.source[0]: c for c in given_columns}
    best = best_radii(given_columns)
    assert len({c.key for c in best}) == len(best)
    for merged in best:
        members = [c for c in given_columns if c.key == merged.key]
        assert merged.guarantee.failure_probability >= sum(c.guarantee.failure_probability for c in members) * (
            1 - 1e-9
        )
        for sample, source in enumerate(merged.source):
            assert by_name[source].key == merged.key
            assert float(merged.radius[sample]) == float(by_name[source].radius[sample])
            assert float(merged.radius[sample]) == max(float(c.radius[sample]) for c in members)


def test_contradictory_proofs_are_a_defect_and_contradictory_votes_certify_nothing() -> None:
    with pytest.raises(DefectiveBoundError, match="sample 1: the certificates a and b"):
        best_radii([column([0.1, 0.1], "a"), column([0.2, 0.2], "b", prediction=[0, 3])])
    abstaining = column([0.1, 0.0], "b", prediction=[0, -1])
    (best,) = best_radii([column([0.1, 0.1], "a"), abstaining])
    assert best.prediction.tolist() == [0, 0]
    (vote,) = best_radii([column([0.1], "a", failure=0.1), column([0.2], "b", prediction=[3], failure=0.1)])
    assert vote.radius.tolist() == [0.0]
    assert vote.guarantee.failure_probability == pytest.approx(0.2)


def test_a_user_defined_certificate_works_like_the_others() -> None:
    @dataclass(frozen=True)
    class Constant:
        """A stand-in for a local certificate."""

        name: str
        radius: float

        def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
            return column([self.radius] * len(x), self.name, prediction=model(x).argmax(1).tolist())

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(5, 1, 2, 2)
    smoothing = RandomisedSmoothing(sigma=0.5, selection_samples=10, estimation_samples=100)
    network, smoothed = certify_best(model, x, [Constant("global", 0.1), smoothing, Constant("local", 0.3)])
    assert network.source == ("local",) * 5
    assert network.function == NETWORK
    assert smoothed.function == smoothing.name


def test_a_column_refuses_radii_that_are_not_finite_or_do_not_fit() -> None:
    with pytest.raises(InputError, match="finite"):
        column([float("nan")], "a")
    with pytest.raises(InputError, match="finite"):
        column([-1.0], "a")
    with pytest.raises(InputError, match="one length"):
        best_radii([column([0.1], "a"), column([0.1, 0.2], "b")])
