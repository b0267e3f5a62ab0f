"""Additions to the Markdown pages of the site: the help texts of the commands, and the examples as files to
download.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

from robustres.cli.main import commands

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\]\((?:\.\./)+(examples|benchmarks)/")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the examples and the benchmarks, to which pages link, to the site."""
    for folder in ("examples", "benchmarks"):
        for file in sorted((ROOT / folder).iterdir()):
            if file.is_file() and file.suffix != ".md":
                name = file.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, content=file.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Redirect links to the examples to their copies on the site, and insert the help texts."""
    up = "../" * (page.file.src_uri.count("/"))
    markdown = OUTSIDE.sub(lambda found: f"]({up}{found[1]}/", markdown)
    return markdown.replace("<!-- commands -->", _commands()) if "<!-- commands -->" in markdown else markdown


def _commands() -> str:
    """One section per command: its help text and its options, as the command line prints them."""
    group: Any = get_command(commands)
    parts = []
    for name, command in sorted(group.commands.items()):
        context = command.context_class(command, info_name=f"robustres {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        rows = ["| option | meaning |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            words = record or (parameter.human_readable_name.upper(), getattr(parameter, "help", "") or "")
            left, right = (" ".join(word.split()).replace("|", "\\|").replace("<", "&lt;") for word in words)
            rows.append(f"| `{left}` | {right} |")
        text = re.sub(r"\n(?!\n)", " ", command.help or "")
        parts.append(f"## robustres {name}\n\n    {usage}\n\n{text}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)
