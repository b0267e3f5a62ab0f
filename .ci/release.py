"""Cut a release: set the version in the package and the citation, date the changelog section, commit and tag.

    python .ci/release.py 0.2.0

Nothing is pushed. When the tag is pushed, the workflow builds the wheel, the source archive and the site.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

VERSION = re.compile(r"\d+\.\d+\.\d+")


def cut(root: Path, version: str, date: str) -> None:
    """Write the version and the date into the three files that state them; exit with a message on failure."""
    changelog = (root / "CHANGELOG.md").read_text()
    if not VERSION.fullmatch(version):
        sys.exit(f"a version is MAJOR.MINOR.PATCH, got {version!r}")
    if f"## [{version}]" in changelog:
        sys.exit(f"CHANGELOG.md already has a section for {version}; choose a later version")
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if unreleased is None or not unreleased[1].strip():
        sys.exit("there is nothing under [Unreleased] in CHANGELOG.md, so there is nothing to release")
    replace(root / "CHANGELOG.md", r"^## \[Unreleased\]\n", f"## [Unreleased]\n\n## [{version}] - {date}\n")
    replace(root / "robustres" / "__init__.py", r'^__version__ = ".*"$', f'__version__ = "{version}"')
    replace(
        root / "CITATION.cff", r"^version: .*\n(date-released: .*\n)?", f"version: {version}\ndate-released: {date}\n"
    )


def replace(file: Path, pattern: str, text: str) -> None:
    """Replace the only match of a pattern with a text."""
    content, count = re.subn(pattern, lambda _: text, file.read_text(), flags=re.M)
    if count != 1:
        sys.exit(f"{file.name} states its version {count} times, expected once")
    file.write_text(content)


def main() -> None:
    root, version = Path.cwd(), " ".join(sys.argv[1:])
    if subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, text=True).stdout:
        sys.exit("there are uncommitted changes; commit or stash them first")
    cut(root, version, datetime.datetime.now(datetime.UTC).date().isoformat())
    subprocess.run(["git", "commit", "--all", "--quiet", "--message", f"Release {version}"], check=True)
    subprocess.run(["git", "tag", "--annotate", f"v{version}", "--message", f"robustres {version}"], check=True)
    print(f"v{version} is committed and tagged; publish it with: git push --follow-tags")


if __name__ == "__main__":
    main()
