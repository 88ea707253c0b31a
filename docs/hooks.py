"""What the build of the documentation does beside MkDocs: formulas become MathML, docstrings Markdown.

MathML is drawn by the browser itself, so a page loads no script and no font for its formulas. MkDocs calls
`on_page_content`, mkdocstrings uses `Docstrings`.
"""

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of `$...$` and `$$...$$`.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """The page with its formulas as MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, formula = match[1], html.unescape(match[2]).strip()
    if "&" in formula:
        formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    drawn = convert(formula, display="block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{drawn}</{tag}>'


class Docstrings(griffe.Extension):
    """Docstrings in Markdown: formulas between dollars, and names of this package as links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _markdown(obj.docstring.value)


def _markdown(text: str) -> str:
    text = re.sub(r"(?s):math:`(.+?)`", r"$\1$", text)
    text = re.sub(r"(?m)^\.\. math::(.*\n?(?:(?:[ \t]+.*)?\n)*)", _block, text + "\n").rstrip()
    text = re.sub(r"`(cid(?:\.\w+)+)`", r'<autoref optional identifier="\1"><code>\1</code></autoref>', text)
    # Griffe knows the plural alone as a section of code.
    return re.sub(r"(?m)^Example:$", "Examples:", text)


def _block(match: re.Match[str]) -> str:
    return f"$$\n{match[1].strip()}\n$$\n\n"
