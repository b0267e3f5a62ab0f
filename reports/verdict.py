"""The verdict: a run's result in plain sentences, with the necessary warnings."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from robustres.reports.formats import at_least, at_most, bound_text, eps_text, norm_text, radius_text, share_text
from robustres.reports.run import Run
from robustres.results import advice, of_network


@dataclass(frozen=True)
class Sentence:
    """tone: result (plain), warning (read before using the result), failure (a threshold was missed), defect (do not
    use the result).
    """

    text: str
    tone: Literal["result", "warning", "failure", "defect"]


def verdict(run: Run, samples: pd.DataFrame) -> list[Sentence]:
    """Defects first, then the results, one sentence per norm, then their limitations."""
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
        return [Sentence("The run contains no samples yet.", "warning")]
    first = (
        f"{clean['correct']:,} of {run.total:,} images are classified correctly without an adversary "
        f"({share_text(clean['accuracy'])})."
    )
    return [Sentence(first, "result"), *(_result(run, samples, norm) for norm in run.asked if run.eps[norm])]


def _result(run: Run, samples: pd.DataFrame, norm: str) -> Sentence:
    eps = run.headline_eps(norm)
    assert eps is not None
    correct = samples["correct"]
    certified = float((correct & (samples[f"radius_{norm}"] >= eps)).mean())
    survived = at_most(float((correct & (samples[f"distance_{norm}"] > eps)).mean()))
    certificates = of_network(run.tables["certificates"])
    guarantees = set(certificates.loc[certificates["norm"] == norm, "guarantee"])
    chance = sorted(guarantees - {"deterministic"})
    proof = f"proven with {' and '.join(chance)}" if chance else "proven"
    attacked = eps <= run.attacked_up_to(norm)
    within = f"ithin an {norm_text(norm)} distance of {eps_text(eps)}"
    proven = f"Whatever is done to the pixels w{within}, at least {at_least(certified)} stay correct ({proof})"
    if certified and attacked:
        text = f"{proven}; attacks leave {survived}. The truth lies in between."
    elif certified:
        text = f"{proven}."
    elif attacked:
        nothing = "the certificate proves nothing there" if guarantees else "nothing is proven"
        text = f"W{within} attacks leave {survived} correct; {nothing}, a better attack may leave fewer."
    else:
        text = f"W{within} nothing is proven and no attack was run."
    return Sentence(text, "result")


def _requirements(run: Run) -> list[Sentence]:
    """Whether each threshold was met."""
    found = []
    for row in run.summary["requirements"]:
        share = "was not counted" if row["share"] is None else f"is {share_text(row['share'])}"
        said = f"{row['require']} was required; the share {share}."
        found.append(Sentence(f"Pass: {said}", "result") if row["met"] else Sentence(said, "failure"))
    return found


def _limits(run: Run) -> list[Sentence]:
    sentences = []
    planned = run.manifest.get("samples")
    if planned is not None and planned != run.total:
        sentences.append(
            Sentence(f"This run is not finished: {run.total:,} of {planned:,} samples are available.", "warning")
        )
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
    if said := advice(run.manifest, run.summary):
        sentences.append(Sentence(said, "warning"))
    if run.tables["diagnosis"]["suspicious"].any():
        sentences.append(
            Sentence(
                "Signs of masked gradients: the attacks may be weaker than they appear, so the attacked accuracies may "
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
    """What is known about the Lipschitz constant of the whole network."""
    whole = run.summary["lipschitz"]
    if whole is None or whole.get("upper") is None:
        return None
    lower = (
        "" if whole.get("lower") is None else f", and at least {radius_text(whole['lower'])} (an estimate from below)"
    )
    norm = norm_text(whole["norm"])
    within = " within [0, 1]" if whole.get("domain") == "unit" else ""
    return (
        f"The whole network amplifies no change of the pixels{within} by more than {bound_text(whole['upper'])} in "
        f"{norm} (a bound){lower}."
    )
