"""The pages in a real browser, from disk and offline: rendered, usable, accessible."""

import importlib.util
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustres.reports import write_comparison, write_report
from robustres.results import RunFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRAWN = "[...document.querySelectorAll('.chart')].every((chart) => chart.dataset.drawn)"
# Milliseconds; a machine that is busy with other tests is slow, not broken.
PATIENCE = 180_000
VIEWS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("ROBUSTRES_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium here; install one (Debian: apt-get install chromium) or set ROBUSTRES_BROWSER")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, as shipped with axe-playwright-python."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    return (Path(found.origin).parent / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, write_run: Any) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("pages")
    report = write_run(base / "digits", count=120)
    other = write_run(base / "other", count=120, looseness=3.0)
    # A network without a certificate: figures must cope with missing series.
    refused = write_run(
        base / "refused",
        count=40,
        without=("certificates", "blocks"),
        lipschitz=None,
        refused=[{"path": "a", "operation": "softmax"}],
    )
    training = RunFolder(refused).table("training").assign(certified=math.nan)
    RunFolder(refused).write_part("training", "all", training)
    return {
        "report": write_report(report),
        "refused": write_report(refused),
        "comparison": write_comparison({"<b>first</b>": report, "second": other}, base / "comparison"),
    }


class Visit:
    """An opened page, with its console messages and network requests."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function(DRAWN)

    def rows(self) -> list[list[str]]:
        """The cells of the table of samples."""
        rows: list[list[str]] = self.page.evaluate(
            "[...document.querySelectorAll('#sample-table tbody tr')]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        return rows


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    visit = Visit(browser, pages["report"])
    yield visit
    visit.page.context.close()


# Tables that need horizontal scrolling; the table of all samples has a toolbar instead.
SCROLLED_SIDEWAYS = """[...document.querySelectorAll('.scroll.card')]
    .filter((box) => box.scrollWidth > box.clientWidth + 1)
    .map((box) => box.getAttribute('aria-labelledby') ?? box.getAttribute('aria-label'))
    .filter((name) => name !== 'Table of samples')"""


@pytest.mark.parametrize(
    ("name", "scheme", "view"),
    [
        ("report", "light", "desktop"),
        ("report", "dark", "desktop"),
        ("report", "light", "phone"),
        ("report", "dark", "phone"),
        ("refused", "light", "desktop"),
        ("comparison", "light", "desktop"),
        ("comparison", "dark", "phone"),
    ],
)
def test_a_page_opens_from_disk_without_errors(
    browser: Any, pages: dict[str, Path], axe: str, name: str, scheme: str, view: str
) -> None:
    visit = Visit(browser, pages[name], width=VIEWS[view], scheme=scheme)
    page = visit.page
    assert visit.problems == []
    remote = [url for url in visit.requests if not url.startswith(("file:", "data:"))]
    assert remote == []
    empty = "[...document.querySelectorAll('.chart')].filter((c) => !c.querySelector('svg path')).length"
    assert page.locator(".chart").count() >= 4
    assert page.evaluate(empty) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= VIEWS[view]
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.locator("#theme").inner_text() == {"light": "Dark", "dark": "Light"}[scheme]
    if view == "phone":
        assert page.evaluate(SCROLLED_SIDEWAYS) == []
    page.evaluate(axe)
    found = page.evaluate("axe.run().then((result) => result.violations)")
    serious = [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in ("serious", "critical")]
    assert serious == []
    page.context.close()


def test_filters_show_exactly_the_matching_samples(visit: Visit, pages: dict[str, Path]) -> None:
    wide = pd.read_csv(pages["report"].parent / "samples.csv")
    visit.page.select_option("#filter-class", "3")
    wanted = wide[wide["label"] == 3]
    assert [int(row[0]) for row in visit.rows()] == wanted["index"].tolist()
    visit.page.select_option("#filter-outcome", "misclassified")
    wanted = wanted[~wanted["correct"]]
    assert [int(row[0]) for row in visit.rows()] == wanted["index"].tolist()
    shown = visit.page.evaluate(
        "[...document.querySelectorAll('#gallery > li:not([hidden])')].map((card) => card.dataset.class)"
    )
    assert set(shown) <= {"3"}


def test_the_gallery_follows_norm_and_order(visit: Visit) -> None:
    page = visit.page
    page.select_option("#filter-norm", "linf")
    page.select_option("#sort-key", "gap")
    page.check("#sort-down")
    cards = page.evaluate(
        "[...document.querySelectorAll('#gallery > li:not([hidden])')]"
        ".map((card) => [card.dataset.norm, Number(card.dataset.gap)])"
    )
    gaps = [gap for _, gap in cards]
    assert len(cards) > 3
    assert {norm for norm, _ in cards} == {"linf"}
    assert gaps == sorted(gaps, reverse=True)


def test_a_column_sorts_in_both_directions_and_announces_it(visit: Visit) -> None:
    button = visit.page.locator("button[data-sort=radius]")
    for direction, reverse in (("ascending", False), ("descending", True)):
        button.click()
        radii = [float(row[4]) for row in visit.rows()]
        assert radii == sorted(radii, reverse=reverse)
        assert visit.page.locator("th[aria-sort]").get_attribute("aria-sort") == direction


def test_the_pages_of_the_table_contain_every_sample_once(visit: Visit) -> None:
    seen = [row[0] for row in visit.rows()]
    while visit.page.locator("#next").is_enabled():
        visit.page.click("#next")
        seen += [row[0] for row in visit.rows()]
    assert [int(index) for index in seen] == list(range(120))


def test_the_keyboard_reaches_every_control(visit: Visit) -> None:
    page = visit.page
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button:enabled, select, input, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility()).map((e, i) => { e.dataset.stop = i; return String(i); })"
    )
    reached = set()
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        stop = page.evaluate("document.activeElement.dataset.stop")
        if stop in reached:
            break
        if stop is not None:
            reached.add(stop)
    assert reached == set(wanted)


def test_the_keyboard_alone_sorts_filters_and_changes_the_theme(visit: Visit) -> None:
    page = visit.page
    page.focus("button[data-sort=distance]")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort] button").get_attribute("data-sort") == "distance"
    page.focus("#theme")
    page.keyboard.press("Space")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_function(DRAWN)
    assert visit.problems == []


def test_the_logarithmic_axis_is_rendered_without_errors(visit: Visit) -> None:
    before = visit.page.locator('[data-figure="sandwich-l2"] svg').inner_html()
    visit.page.click("[data-scale=log]")
    visit.page.wait_for_function(
        "(before) => document.querySelector('[data-figure=\"sandwich-l2\"] svg')?.innerHTML !== before", arg=before
    )
    assert visit.page.locator("[data-scale=log]").get_attribute("aria-pressed") == "true"
    assert visit.problems == []


def test_hovering_shows_the_numbers_of_the_curves(visit: Visit) -> None:
    chart = visit.page.locator('[data-figure="sandwich-l2"] svg')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    visit.page.mouse.move(box["x"] + box["width"] * 0.41, box["y"] + box["height"] * 0.4)
    tooltip = visit.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "certified (lower bound)" in tooltip.inner_text()


def test_names_with_markup_are_shown_as_text(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["comparison"])
    assert "<b>first</b>" in visit.page.locator("h1").inner_text()
    assert visit.page.locator("h1 b").count() == 0
    visit.page.context.close()
