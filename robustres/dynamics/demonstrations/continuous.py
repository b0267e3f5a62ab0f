"""The continuous view: residual blocks as steps of an integrator, their stability, accuracy, radius and time."""

import math
from time import perf_counter
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustres.data import ImageSet
from robustres.dynamics.demonstrations.correction import pairwise_reach
from robustres.dynamics.measures.charts import lines, rows, specification
from robustres.dynamics.measures.claim import Claim, Finding, bound, exact, measured
from robustres.dynamics.measures.fit import fit
from robustres.dynamics.measures.schemes import RK4, SCHEMES, Scheme
from robustres.dynamics.small_networks.flow import FlowNet, flow_net
from robustres.dynamics.small_networks.parts import Parts, digits_parts

TITLE = "A residual block is a step of an integrator"
STATEMENT = (
    "x + h f(x) is forward Euler: linear f = A x is stable iff |1 + h lambda| <= 1, implicit steps are stable at every "
    "h, and refining the depth at fixed time converges at the order of the scheme with the same parameters."
)
SOURCE = "Haber and Ruthotto 2017; Chen et al. 2018 (neural ODEs); Dahlquist and Jeltsch 1979; Hairer and Wanner 1996"
STEPS = (1, 2, 4, 8, 16)
NAMES = tuple(scheme.name for scheme in SCHEMES)


def continuous(data: Parts | None = None, *, epochs: int = 8, samples: int = 100, eps: float = 0.5) -> Claim:
    """Step sizes, schemes and spectra of a linear field in closed form, and of a network trained on digits.

    The frame has rows of four parts. "linear": scheme, h, radius (max |R(h lambda)|, exact), growth (measured).
    "spectrum": h, real, imaginary: eigenvalues of I + h A. "scheme": scheme, steps, h, deviation (largest distance of
    the last state from a fine reference, measured), accuracy, upper (bound on the Lipschitz constant of the body),
    certified (share correct with radius >= eps, from bounds), seconds. "trajectory": sample, label, time, first,
    second (principal components of the states).
    """
    parts = data or digits_parts()
    test = parts.test.first(samples)
    field = _linear_field()
    model = flow_net(parts.pixels, parts.classes, steps=8)
    fit(model, parts.train.images, parts.train.labels, epochs=epochs, after_step=lambda: model.limit(6.0))
    model.double()
    frame = pd.DataFrame(
        [*_linear_rows(field), *_spectrum_rows(field), *_scheme_rows(model, test, eps), *_trajectory_rows(model, test)]
    )
    return Claim(
        "continuous",
        TITLE,
        STATEMENT,
        SOURCE,
        _findings(frame),
        frame,
        specification(_picture(frame)),
        "Top left: growth per step of a rotating, damped linear field; above the line it is unstable. Top right: "
        "eigenvalues of I + h A, stable inside the circle. Bottom left: one trained network under four integrators, "
        "distance from a fine reference. Bottom right: the paths of ten test digits through the depth.",
    )


def _linear_field(size: int = 8) -> np.ndarray:
    """A rotating, damped field: eigenvalues -0.3 +- i w with several frequencies w up to 3."""
    field = -0.3 * np.eye(size)
    for pair, frequency in enumerate(np.linspace(0.75, 3.0, size // 2)):
        field[2 * pair, 2 * pair + 1], field[2 * pair + 1, 2 * pair] = frequency, -frequency
    return field


def _linear_rows(field: np.ndarray, steps: int = 60) -> list[dict[str, Any]]:
    eigenvalues = np.linalg.eigvals(field)
    found = []
    for scheme in SCHEMES:
        for h in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
            radius = float(np.abs(scheme.stability(h * eigenvalues)).max())
            growth = float(
                np.linalg.norm(np.linalg.matrix_power(_step_matrix(scheme, h * field), steps), 2) ** (1 / steps)
            )
            found.append({"part": "linear", "scheme": scheme.name, "h": h, "radius": radius, "growth": growth})
    return found


def _step_matrix(scheme: Scheme, scaled: np.ndarray) -> np.ndarray:
    """The matrix of one step for a linear field: R(h A), computed through the stages."""
    size, stages = len(scaled), len(scheme.weights)
    system = np.eye(size * stages) - np.kron(np.array(scheme.matrix), scaled)
    inner = np.linalg.solve(system, np.kron(np.ones((stages, 1)), np.eye(size)))
    return np.asarray(np.eye(size) + np.kron(np.array(scheme.weights)[None], scaled) @ inner)


def _spectrum_rows(field: np.ndarray) -> list[dict[str, Any]]:
    values = np.linalg.eigvals(field)
    return [
        {"part": "spectrum", "h": h, "real": float(1 + h * v.real), "imaginary": float(h * v.imag)}
        for h in (0.05, 0.2, 0.5)
        for v in values
    ]


@torch.no_grad()
def _scheme_rows(model: FlowNet, test: ImageSet, eps: float) -> list[dict[str, Any]]:
    images = test.images.double()
    model.scheme, model.steps = RK4, 64
    reference = model.states(images)[0][-1]
    found = []
    for scheme in SCHEMES:
        for steps in STEPS:
            model.scheme, model.steps = scheme, steps
            start = perf_counter()
            states, owed = model.states(images)
            seconds = perf_counter() - start
            logits, upper = model.head(states[-1]), math.prod(model.step_uppers())
            # The equations are solved up to a residual; since the steps contract, the error of the state is at most
            # their sum.
            radius = (pairwise_reach(logits, model.head.weight) * (1 - 1e-9) - owed) / upper
            correct = logits.argmax(dim=1) == test.labels
            found.append(
                {
                    "part": "scheme",
                    "scheme": scheme.name,
                    "steps": steps,
                    "h": 1 / steps,
                    "seconds": seconds,
                    "upper": upper,
                    "deviation": float(torch.linalg.vector_norm(states[-1] - reference, dim=1).max()),
                    "accuracy": float(correct.double().mean()),
                    "certified": float((correct & (radius >= eps)).double().mean()),
                }
            )
    return found


def _trajectory_rows(model: FlowNet, test: ImageSet, shown: int = 10) -> list[dict[str, Any]]:
    model.scheme, model.steps = RK4, 8
    with torch.no_grad():
        states = torch.stack(model.states(test.images[:shown].double())[0])
    return trajectory_rows(states, test.labels)


def trajectory_rows(states: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Rows of the two main components of states (T, N, D) at every time."""
    flat = states.flatten(0, 1)
    basis = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh[:2]
    plane = (states - flat.mean(dim=0)) @ basis.T
    return [
        {
            "part": "trajectory",
            "sample": n,
            "label": str(int(labels[n])),
            "time": t,
            "first": float(plane[t, n, 0]),
            "second": float(plane[t, n, 1]),
        }
        for n in range(states.shape[1])
        for t in range(len(states))
    ]


def _findings(frame: pd.DataFrame) -> tuple[Finding, ...]:
    linear, runs = frame[frame["part"] == "linear"], frame[frame["part"] == "scheme"].set_index(["scheme", "steps"])
    forward = linear[linear["scheme"] == "forward Euler"].set_index("h")["growth"]
    findings = [
        measured(
            "growth per step - max |R(h lambda)|, largest difference", (linear["growth"] - linear["radius"]).abs().max()
        ).at_most(1e-9, "the stability function"),
        exact("forward Euler, growth per step at h = 0.05", forward[0.05]).at_most(1.0, "stable"),
        exact("forward Euler, growth per step at h = 0.5", forward[0.5]).at_least(1.1, "unstable"),
        exact(
            "backward Euler, largest growth per step at any h",
            linear[linear["scheme"] == "backward Euler"]["growth"].max(),
        ).at_most(1.0, "stable"),
        bound(
            "backward Euler, largest Lipschitz bound at any number of steps", runs.loc["backward Euler"]["upper"].max()
        ).at_most(1.0, "unconditionally contractive"),
        bound("forward Euler with 1 step per section, Lipschitz bound", runs.loc["forward Euler"]["upper"][1]).at_least(
            2.0, "not contractive at this step"
        ),
    ]
    for scheme in SCHEMES:
        deviation = runs.loc[scheme.name]["deviation"]
        order = math.log2(deviation[STEPS[-2]] / deviation[STEPS[-1]])
        findings.append(
            measured(f"{scheme.name}, observed order", order).at_least(scheme.order - 0.35, f"order {scheme.order}")
        )
    finest = runs.xs(STEPS[-1], level="steps")
    findings.append(
        measured("accuracy with 16 steps, smallest over the schemes", finest["accuracy"].min()).at_least(
            0.85, "the network learned"
        )
    )
    findings.append(
        bound("certified share with 16 steps, largest over the schemes", finest["certified"].max()).at_least(
            0.1, "some radius is proven"
        )
    )
    return tuple(findings)


def _picture(frame: pd.DataFrame) -> Any:
    linear, spectrum, runs = (frame[frame["part"] == part] for part in ("linear", "spectrum", "scheme"))
    deviation = lines(
        runs,
        "steps",
        "deviation",
        "scheme",
        order=NAMES,
        x_title="steps per unit of time",
        y_title="distance from the reference",
        x_log=True,
        y_log=True,
        width=260,
        height=200,
    )
    paths = trajectory_chart(frame[frame["part"] == "trajectory"], 200)
    apart: dict[str, Any] = {"color": "independent", "shape": "independent", "strokeDash": "independent"}
    top = alt.hconcat(_growth_chart(linear), _spectrum_chart(spectrum)).resolve_scale(**apart)
    bottom = alt.hconcat(deviation, paths).resolve_scale(color="independent", strokeDash="independent")
    return alt.vconcat(top, bottom).resolve_scale(**apart)


def _growth_chart(linear: pd.DataFrame) -> Any:
    """Growth per step by step size, and the level above which a step is unstable."""
    one = alt.Chart(alt.InlineData(values=[{"y": 1}])).mark_rule(strokeDash=[4, 3]).encode(y="y:Q")
    growth = lines(
        linear,
        "h",
        "growth",
        "scheme",
        order=NAMES,
        x_title="step size h",
        y_title="growth per step",
        x_log=True,
        y_log=True,
        y_format="~g",
        width=260,
        height=200,
    )
    return alt.layer(one, growth)


def _spectrum_chart(spectrum: pd.DataFrame) -> Any:
    """Eigenvalues of I + h A and the unit circle."""
    angles = np.linspace(0, 2 * math.pi, 80)
    circle = pd.DataFrame({"real": np.cos(angles), "imaginary": np.sin(angles), "order": range(80)})
    ring = (
        alt.Chart(rows(circle))
        .mark_line(color="#56606b", strokeDash=[4, 3])
        .encode(x="real:Q", y="imaginary:Q", order="order:Q")
    )
    named = spectrum.assign(step=[f"h = {h:g}" for h in spectrum["h"]])[["real", "imaginary", "step"]]
    legend = alt.Legend(orient="bottom", title=None)
    points = (
        alt.Chart(rows(named))
        .mark_point(filled=True, size=40)
        .encode(
            x=alt.X("real:Q", title="real part", scale=alt.Scale(domain=[-1.7, 1.7])),
            y=alt.Y("imaginary:Q", title="imaginary part", scale=alt.Scale(domain=[-1.7, 1.7])),
            color=alt.Color("step:N", legend=legend),
            shape=alt.Shape("step:N", legend=legend),
        )
    )
    return alt.layer(ring, points).properties(width=200, height=200)


def trajectory_chart(paths: pd.DataFrame, width: int) -> Any:
    """Trajectories of samples in the plane, with a dot at the end."""
    base = alt.Chart(rows(paths[["sample", "label", "time", "first", "second"]]))
    place = {
        "x": alt.X("first:Q", title="first component", scale=alt.Scale(zero=False)),
        "y": alt.Y("second:Q", title="second component", scale=alt.Scale(zero=False)),
    }
    path = base.mark_line(opacity=0.8).encode(
        **place, detail="sample:N", order="time:Q", color=alt.Color("label:N", legend=None)
    )
    end = (
        base.transform_filter(f"datum.time == {int(paths['time'].max())}")
        .mark_text(fontWeight="bold")
        .encode(**place, text="label:N", color=alt.Color("label:N", legend=None))
    )
    return alt.layer(path, end).properties(width=width, height=200)
