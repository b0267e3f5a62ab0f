"""The verdict: a run's result in sentences that need no training to read, and the warnings that belong beside them."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from robustres.reports.formats import eps_text, norm_text, number_text, share_text
from robustres.reports.run import Run
from robustres.results import of_network


@dataclass(frozen=True)
class Sentence:
    """tone: result (plain), warning (read before using the result), defect (do not use the result)."""

    text: str
    tone: Literal["result", "warning", "defect"]


def verdict(run: Run, samples: pd.DataFrame) -> list[Sentence]:
    """First defects, then the results, one sentence per norm, then what limits them."""
    limits = _limits(run)
    defects = [sentence for sentence in limits if sentence.tone == "defect"]
    return [
        *defects,
        *_requirements(run),
        *_results(run, samples),
        *(sentence for sentence in limits if sentence.tone != "defect"),
    ]


def _results(run: Run, samples: pd.DataFrame) -> list[Sentence]:
    clean = run.summary["clean"]
    if not run.total:
        return [Sentence("The run holds no samples yet.", "warning")]
    first = (
        f"{clean['correct']:,} of {run.total:,} images are classified correctly without an adversary "
        f"({share_text(clean['accuracy'])})."
    )
    return [Sentence(first, "result"), *(_result(run, samples, norm) for norm in run.norms if run.eps[norm])]


def _result(run: Run, samples: pd.DataFrame, norm: str) -> Sentence:
    eps = run.headline_eps(norm)
    assert eps is not None
    correct = samples["correct"]
    certified = float((correct & (samples[f"radius_{norm}"] >= eps)).mean())
    survived = float((correct & (samples[f"distance_{norm}"] > eps)).mean())
    certificates = of_network(run.tables["certificates"])
    guarantees = set(certificates.loc[certificates["norm"] == norm, "guarantee"])
    chance = sorted(guarantees - {"deterministic"})
    proof = f"proven with {' and '.join(chance)}" if chance else "proven"
    attacked = eps <= run.attacked_up_to(norm)
    where = f"Whatever is done to the pixels within an {norm_text(norm)} distance of {eps_text(eps)}"
    if guarantees and attacked and not certified:
        text = (
            f"Within an {norm_text(norm)} distance of {eps_text(eps)} attacks leave {share_text(survived)} correct; "
            "the certificate proves nothing there, a better attack may leave fewer."
        )
    elif guarantees and attacked:
        text = (
            f"{where}, at least {share_text(certified)} stay correct ({proof}); attacks leave {share_text(survived)}. "
            f"The truth lies in between."
        )
    elif guarantees:
        text = f"{where}, at least {share_text(certified)} stay correct ({proof}); nothing was attacked at this eps."
    else:
        text = (
            f"Within an {norm_text(norm)} distance of {eps_text(eps)} attacks leave {share_text(survived)} correct; "
            "nothing is proven, a better attack may leave fewer."
        )
    return Sentence(text, "result")


def _requirements(run: Run) -> list[Sentence]:
    """Whether each threshold was reached."""
    found = []
    for row in run.summary["requirements"]:
        share = "was not counted" if row["share"] is None else f"is {share_text(row['share'])}"
        text = f"{'Pass' if row['met'] else 'Fail'}: {row['require']} was required; the share {share}."
        found.append(Sentence(text, "result" if row["met"] else "defect"))
    return found


def _limits(run: Run) -> list[Sentence]:
    sentences = []
    violations = run.summary["sandwich"]["violations"]
    if violations:
        sentences.append(
            Sentence(
                f"{violations} adversarial examples lie inside a certified radius: the certificate is defective. "
                "Do not use these results; please report the run.",
                "defect",
            )
        )
    if run.summary["refused"]:
        sentences.append(
            Sentence("There is no certificate: no bound is known for some operations of this network.", "warning")
        )
    if run.tables["diagnosis"]["suspicious"].any():
        sentences.append(
            Sentence(
                "Signs of masked gradients: the attacks may be weaker than they look, so the attacked accuracies may "
                "be too high.",
                "warning",
            )
        )
    broken = int((~run.tables["samples"]["finite"]).sum())
    if broken:
        sentences.append(
            Sentence(
                f"The logits of {broken} of the samples are not finite; such a sample counts as misclassified.",
                "warning",
            )
        )
    return sentences


def lipschitz_sentence(run: Run) -> str | None:
    """What is known of the whole network's Lipschitz constant."""
    whole = run.summary["lipschitz"]
    if whole is None or whole.get("upper") is None:
        return None
    lower = (
        "" if whole.get("lower") is None else f", and at least {number_text(whole['lower'])} (an estimate from below)"
    )
    norm = norm_text(whole["norm"])
    return (
        f"The whole network amplifies no change of the pixels by more than {number_text(whole['upper'])} in {norm} "
        f"(a bound){lower}."
    )
