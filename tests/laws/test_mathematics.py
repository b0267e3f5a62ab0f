"""docs/mathematics.md contains every section that the code cites."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("attacks", "certify", "reports", "robustres", "docs", "tests")


def test_every_cited_section_of_the_mathematics_exists() -> None:
    page = (ROOT / "docs" / "mathematics.md").read_text()
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", page, flags=re.MULTILINE))
    files = [file for folder in FOLDERS for end in ("py", "md") for file in (ROOT / folder).rglob(f"*.{end}")]
    cited = {
        (str(file.relative_to(ROOT)), number)
        for file in files
        for number in re.findall(r"section\s+(\d+(?:\.\d+)?)\s+of\s+the\s+mathematics", file.read_text())
    }
    assert len(cited) >= 6
    assert {(file, number) for file, number in cited if number not in sections} == set()
