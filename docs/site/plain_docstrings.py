"""A griffe extension that converts the plain docstrings of robustres to Markdown.

Settings are written as `name: text` at the beginning of consecutive lines, with indented continuation lines. They
become a list; examples become code blocks. Everything else is already Markdown.
"""

import re

import griffe

SETTING = re.compile(r"^(\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*): (?=\S)")


def as_markdown(text: str) -> str:
    """A docstring with its settings as a list and its examples as code.

    >>> print(as_markdown("Attack.\\n\\nsteps: updates\\n    per restart.\\nloss: a name."))
    Attack.
    <BLANKLINE>
    - **steps**: updates per restart.
    - **loss**: a name.
    """
    paragraphs = re.split(r"\n[ \t]*\n", _separated(text.strip("\n")))
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _separated(text: str) -> str:
    """The text with an empty line between the last setting and a sentence that follows it at the margin."""
    lines: list[str] = []
    among_settings = False
    for line in text.split("\n"):
        is_setting = SETTING.match(line) is not None
        if among_settings and not is_setting and line and not line[0].isspace():
            lines.append("")
        among_settings = is_setting or (among_settings and bool(line) and line[0].isspace())
        lines.append(line)
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    example = next((place for place, line in enumerate(lines) if line.lstrip().startswith(">>>")), None)
    if example is not None:
        before = [_paragraph("\n".join(lines[:example])), ""] if example else []
        return "\n".join((*before, "```pycon", *_dedented(lines[example:]), "```"))
    if not SETTING.match(lines[0]):
        return text
    items: list[str] = []
    for line in lines:
        if found := SETTING.match(line):
            name = found[1].replace("*", chr(92) + "*")
            items.append(f"- **{name}**: {line[found.end() :]}")
        else:
            items[-1] += " " + line.strip()
    return "\n".join(items)


def _dedented(lines: list[str]) -> list[str]:
    margin = len(lines[0]) - len(lines[0].lstrip())
    return [line[margin:] if line[:margin].isspace() else line for line in lines]


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring once, after griffe has read it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
