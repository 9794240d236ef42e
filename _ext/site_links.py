"""Links of the site: from an equation to the functions that implement it, and from a chapter to its student notebook.

A docstring names an equation with ``:eq:`eq-label```, and Sphinx links it. The way back is made here: whatever a described
object refers to is remembered, and every such equation gets a line of links below it.
"""

from __future__ import annotations

import importlib
import posixpath
from pathlib import Path
from typing import Any

import student
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective


def implementations(env: BuildEnvironment) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """``{equation label: {page: [(full name, anchor)]}}``, kept with the environment between builds."""
    if not hasattr(env, "pwl_implementations"):
        env.pwl_implementations = {}  # type: ignore[attr-defined]
    return env.pwl_implementations  # type: ignore[attr-defined, no-any-return]


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    for pages in implementations(env).values():
        pages.pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    for label, pages in implementations(other).items():
        implementations(env).setdefault(label, {}).update(pages)


def remember(app: Sphinx, doctree: nodes.document) -> None:
    """Notes which described object (the innermost one) names which equation."""
    docname = app.env.docname
    for reference in doctree.findall(addnodes.pending_xref):
        if reference.get("reftype") not in ("eq", "numref") or reference.get("refdomain") != "math":
            continue
        parent = reference.parent
        while parent is not None and not isinstance(parent, addnodes.desc):
            parent = parent.parent
        if parent is None:
            continue
        signature = next(parent.findall(addnodes.desc_signature))
        name = ".".join(part for part in (signature.get("module"), signature.get("fullname")) if part)
        found = implementations(app.env).setdefault(reference["reftarget"], {}).setdefault(docname, [])
        if (name, signature["ids"][0]) not in found:
            found.append((name, signature["ids"][0]))


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages whose equations have code: written again even where only a docstring changed."""
    equations = env.get_domain("math").data["objects"]
    return sorted(
        {equations[label][0] for label, pages in implementations(env).items() if pages and label in equations}
    )


def link_equations(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for equation in list(doctree.findall(nodes.math_block)):
        pages = implementations(app.env).get(equation.get("label", ""), {})
        links = [(name, page, anchor) for page, found in sorted(pages.items()) for name, anchor in found]
        if not links:
            continue
        line = nodes.container(classes=["equation-code"])
        text = nodes.paragraph("", "", nodes.inline("", "code: "))
        for n, (name, page, anchor) in enumerate(links):
            uri = app.builder.get_relative_uri(docname, page) + "#" + anchor
            text += [nodes.Text(", ")] if n else []
            text += nodes.reference("", "", nodes.literal(text=name), internal=True, refuri=uri)
        line += text
        equation.parent.insert(equation.parent.index(equation) + 1, line)


class HandedOn(SphinxDirective):
    """``.. handed-on:: pwl_lib.functional``: the names a module exports from others, each linked to its one entry."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        rows = nodes.bullet_list(classes=["handed-on"])
        for name in sorted(module.__all__, key=str.lower):
            thing = getattr(module, name)
            target = f"{thing.__module__}.{thing.__qualname__}"
            reference = addnodes.pending_xref(
                "",
                nodes.literal(text=name),
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refexplicit=True,
                refwarn=True,
            )
            reference["refdoc"] = self.env.docname
            rows += nodes.list_item("", nodes.paragraph("", "", reference))
        return [rows]


class Exercises(SphinxDirective):
    """``.. exercises:: pwl_lib.check.pooling``: an entry for each checker, which autodoc takes for plain data."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = StringList()
        exercise = importlib.import_module("pwl_lib.check").Exercise
        for name in [name for name, thing in vars(module).items() if isinstance(thing, exercise)]:
            lines.append(f".. autodata:: {self.arguments[0]}.{name}", __file__)
            lines.append("   :no-value:", __file__)
            lines.append("", __file__)
        box = nodes.container()
        self.state.nested_parse(lines, 0, box)
        return box.children


def student_button(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    name = posixpath.basename(pagename)
    if name not in student.chapters(Path(app.srcdir)):
        return
    context["header_buttons"].insert(
        0,
        {
            "type": "link",
            "url": context["pathto"](f"student/{name}.ipynb", 1),
            "text": "Student notebook",
            "tooltip": "Download this chapter with blanks instead of solutions",
            "icon": "fas fa-pencil-alt",
            "label": "student-notebook-button",
        },
    )


def write_student_notebooks(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        student.write_all(Path(app.srcdir), Path(app.outdir) / "student")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("handed-on", HandedOn)
    app.add_directive("exercises", Exercises)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("doctree-read", remember)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", link_equations)
    # The theme fills its list of buttons at priority 501.
    app.connect("html-page-context", student_button, priority=502)
    app.connect("build-finished", write_student_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
