"""The directive of the interactive figures, which need no kernel: a script in the page draws a board in place of a figure.

    :::{interactive} logsumexp
    :static: fig-lse-slider

    What moves, and with which keys.
    :::

The name is that of a script in ``_extra/interactive/``; ``static`` is the label of a figure on the same page. The figure stands
where scripts are off, and then the text of the directive is hidden; with scripts on, it becomes the caption of the board.
Only pages with a board load the scripts.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)

FOLDER = "interactive"
STYLES = ("jsxgraph/jsxgraph.css", "boards.css")
SCRIPTS = ("jsxgraph/jsxgraphcore.js", "boards.js")


class interactive(nodes.General, nodes.Element):
    """A board: its ``name``, the ``static`` label of a figure, and the text to show beside the board."""


class Interactive(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"static": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        name = self.arguments[0]
        if f"{name}.js" in SCRIPTS or not (Path(self.env.srcdir) / "_extra" / FOLDER / f"{name}.js").is_file():
            raise self.error(f"no board is named {name!r}")
        if "static" not in self.options:
            raise self.error("an interactive figure needs :static:, the label of the figure that stands in for it")
        node = interactive(name=name, static=self.options["static"])
        self.set_source_info(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


def find_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Turns the label of the figure into its id. Where no board can be, the text is a note."""
    for node in list(doctree.findall(interactive)):
        figure = doctree.ids.get(doctree.nameids.get(node["static"]) or "")
        if not isinstance(figure, nodes.figure):
            log.warning("no figure of this page has the label %r", node["static"], location=node)
        if isinstance(figure, nodes.figure) and app.builder.format == "html":
            node["figure"] = figure["ids"][0]
        else:
            node.replace_self(nodes.note("", *node.children))


def visit(translator: Any, node: interactive) -> None:
    values = {"class": "interactive", "data-board": node["name"], "data-static": node["figure"]}
    attributes = " ".join(f'{key}="{html.escape(value)}"' for key, value in values.items())
    translator.body.append(f"<div {attributes} hidden>\n")


def depart(translator: Any, node: interactive) -> None:
    translator.body.append("</div>\n")


def load(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    names = sorted({node["name"] for node in doctree.findall(interactive)}) if doctree else []
    if not names:
        return

    def address(file: str) -> str:
        return html.escape(context["pathto"](f"{FOLDER}/{file}", 1))

    tags = [f'<link rel="stylesheet" href="{address(file)}" />' for file in STYLES]
    tags += [f'<script defer src="{address(file)}"></script>' for file in (*SCRIPTS, *(f"{name}.js" for name in names))]
    context["metatags"] += "\n".join(["", *tags, ""])


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(interactive, html=(visit, depart))
    app.add_directive("interactive", Interactive)
    app.connect("doctree-resolved", find_figures)
    app.connect("html-page-context", load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
