"""Templates: HTML, Markdown and LaTeX, each with the escaping of its language applied to every value."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from robustres.reports.formats import (
    at_least,
    at_most,
    attack_text,
    bound_text,
    eps_text,
    norm_text,
    number_text,
    p_text,
    radius_text,
    share_as,
    share_text,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ℓ1": r"$\ell_1$",
    "ℓ2": r"$\ell_2$",
    "ℓ∞": r"$\ell_\infty$",
    "∞": r"$\infty$",
    "–": "--",
    "×": r"$\times$",
    "−": r"$-$",
    " %": r"\,\%",
}
_LATEX_PATTERN = re.compile("|".join(re.escape(key) for key in sorted(_LATEX, key=len, reverse=True)))


def escape_markdown(value: Any) -> str:
    r"""Text that Markdown displays verbatim, also inside a table.

    >>> escape_markdown("<b>|x_1")
    '&lt;b&gt;\\|x\\_1'
    """
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def escape_latex(value: Any) -> str:
    r"""Text that LaTeX typesets verbatim.

    >>> escape_latex("50 % of a_b")
    '50\\,\\% of a\\_b'
    """
    if isinstance(value, _Tex):
        return str(value)
    return _LATEX_PATTERN.sub(lambda match: _LATEX[match.group()], str(value))


class _Tex(str):
    """Text that a macro has already escaped."""


def render(template: str, **values: Any) -> str:
    """Fill in a template; its file extension decides how values are escaped."""
    kind = template.rsplit(".", 1)[-1]
    return _environment(kind).get_template(template).render(**values)


@cache
def _environment(kind: str) -> jinja2.Environment:
    loader = jinja2.PackageLoader("robustres.reports", "templates")
    shared: dict[str, Any] = {
        "loader": loader,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    if kind == "html":
        environment = jinja2.Environment(autoescape=True, **shared)
    elif kind == "tex":
        marks: dict[str, Any] = {"block_start_string": "<%", "block_end_string": "%>", "comment_start_string": "<#"}
        marks |= {"variable_start_string": "<<", "variable_end_string": ">>", "comment_end_string": "#>"}
        environment = jinja2.Environment(autoescape=False, finalize=escape_latex, **marks, **shared)
        environment.filters["tex"] = _Tex
    else:
        environment = jinja2.Environment(autoescape=False, finalize=escape_markdown, **shared)
    environment.filters |= {"share": share_text, "number": number_text, "eps": eps_text, "norm": norm_text, "p": p_text}
    environment.filters |= {"radius": radius_text, "bound": bound_text, "at_least": at_least, "at_most": at_most}
    environment.filters |= {"attack": attack_text, "share_as": share_as}
    return environment


@cache
def page_assets() -> dict[str, Markup]:
    """Style sheet, script and the Vega libraries, for embedding in the page."""
    folder = files("robustres.reports") / "templates"
    libraries = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assets = {
        "style": (folder / "report.css").read_text(),
        "script": (folder / "report.js").read_text(),
        "libraries": libraries.replace("</script", "<\\/script"),
    }
    return {name: Markup(text) for name, text in assets.items()}
