"""The documentation site: it builds in strict mode, every link resolves, every public name and task can be found."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("", ".attacks", ".certify", ".data", ".dynamics", ".evaluation", ".models", ".reports", ".training")
# Tasks of a new user, written before the site: a word of the task, and the page that answers it.
TASKS = {
    "onnx file on my own images": "tutorials/evaluate.md",
    "torchvision": "how-to/models-and-data.md",
    "dataloader": "how-to/models-and-data.md",
    "certified radius for an image": "tutorials/certify.md",
    "which block": "how-to/runs.md",
    "ci job": "how-to/runs.md",
    "interrupted run": "how-to/runs.md",
    "compare two networks": "how-to/runs.md",
    "training loop": "how-to/training-loops.md",
    "auditor": "how-to/sharing.md",
}


class Links(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            if key in ("id", "name") and value:
                self.anchors.add(value)


@pytest.mark.slow
def test_the_site_builds_in_strict_mode_and_every_link_resolves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page: parsed(page) for page in sorted(tmp_path.rglob("*.html"))}
    assert len(pages) > 30
    broken = [
        f"{page.relative_to(tmp_path)}: {link}"
        for page, found in pages.items()
        if page.name != "404.html"  # its links are relative to the root of the server
        for link in found.links
        if not leads_somewhere(page, link, pages)
    ]
    assert not broken, "\n".join(broken)
    assert (tmp_path / "examples" / "own_attack.py").is_file()


def parsed(page: Path) -> Links:
    """The links of a page and its anchors."""
    links = Links()
    links.feed(page.read_text())
    return links


def leads_somewhere(page: Path, link: str, pages: dict[Path, Links]) -> bool:
    """Whether a link is external, or points to an existing file and anchor of the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme in ("http", "https", "data", "mailto")
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return False
    anchor = unquote(parts.fragment)
    return not anchor or target not in pages or anchor in pages[target].anchors


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.M))
    module = import_module(f"robustres{package}")
    missing = [name for name in module.__all__ if name != "__version__" and f"robustres{package}.{name}" not in shown]
    assert not missing
    for name in shown:
        home, _, attribute = name.rpartition(".")
        assert hasattr(import_module(home), attribute), name


def test_the_ten_tasks_are_one_click_from_a_list_in_the_navigation() -> None:
    rows = re.findall(r"^\| (.+?) \| \[.+?\]\((.+?)\) \|$", (DOCS / "how-to" / "index.md").read_text(), re.M)
    answers = {task.lower(): (DOCS / "how-to" / link.split("#")[0]).resolve() for task, link in rows}
    assert len(answers) == len(TASKS)
    for word, page in TASKS.items():
        assert [DOCS / page] == [answer for task, answer in answers.items() if word in task], word
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert "how-to/index.md" in str(navigation[1:3])


def test_every_page_is_in_the_navigation() -> None:
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in DOCS.rglob("*.md"):
        assert f"{page.relative_to(DOCS).as_posix()}'" in navigation, page


def test_docstrings_become_lists_and_code() -> None:
    sys.path.insert(0, str(DOCS / "site"))
    try:
        as_markdown = import_module("plain_docstrings").as_markdown
    finally:
        sys.path.pop(0)
    text = "First.\n\nspec: a\n    b.\nroot: c.\nRaises X.\n\n>>> one = 1\n>>> one\n1\n"
    listed, ending = "- **spec**: a b.\n- **root**: c.", "```pycon\n>>> one = 1\n>>> one\n1\n```"
    assert as_markdown(text) == f"First.\n\n{listed}\n\nRaises X.\n\n{ending}"
    assert as_markdown("Guaranteed: a sentence,\nand more.") == "Guaranteed: a sentence,\nand more."
