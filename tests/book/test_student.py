"""The student notebooks: plain Markdown, blanks that fail, and the numbers that the site shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import bookfiles
import nbformat
import pytest
import student
from nbclient import NotebookClient

each_chapter = pytest.mark.parametrize("name", student.chapters(bookfiles.ROOT))

LEFT_OVER = {
    "a directive": re.compile(r"^\s*>?\s*(:{3,}|`{3,}\{)", re.M),
    "a role": re.compile(r"\{[\w:-]+\}`"),
    "a target": re.compile(r"^\([\w:-]+\)=", re.M),
    "a label of an equation": re.compile(r"\$\$[ \t]*\([\w:-]+\)"),
    "a link to a label": re.compile(r"\]\(#"),
    "a link to a page of the site": re.compile(r"\]\([^)]*\.md"),
}


def names(source: str) -> tuple[set[str], set[str]]:
    """What a cell gives names to, or writes into, and what it reads."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    local = {part for node in functions for part in ast.walk(node) if part is not node}
    given, read = {node.name for node in functions}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read.add(node.id)
        elif node in local:
            continue
        elif isinstance(node, ast.Name):
            given.add(node.id)
        elif isinstance(node, ast.alias):
            given.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            given.update(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
    return given, read


def around_blanks(sources: list[str]) -> set[int]:
    """The cells with a blank, those that use what such a cell defines, and all that these need."""
    cells = [names(source) for source in sources]
    blank = {i for i, source in enumerate(sources) if student.BLANK in source}
    chosen, answers = set(blank), set().union(*(cells[i][0] for i in blank))
    chosen |= {i for i, (_, read) in enumerate(cells) if i > min(blank) and read & answers}
    waiting = list(chosen)
    while waiting:
        last = waiting.pop()
        for name in cells[last][1]:
            before = {i for i in range(last) if name in cells[i][0]} - chosen
            chosen |= before
            waiting += before
    return chosen


@each_chapter
def test_only_plain_markdown_is_left(name: str) -> None:
    for cell in student.convert(bookfiles.ROOT, name).cells:
        if cell.cell_type == "markdown":
            # Code may say anything.
            text = re.sub(r"(?<!\})(`+)(?!\{)[^`\n]+\1", "", cell.source)
            assert [what for what, pattern in LEFT_OVER.items() if pattern.search(text)] == [], cell.source


@each_chapter
def test_no_solution_and_no_output_is_left(name: str) -> None:
    notebook = student.convert(bookfiles.ROOT, name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert "# one solution" not in cell.source
        assert not cell.get("outputs")
        assert not cell.metadata


@each_chapter
def test_every_blank_fails_its_check_and_nothing_else_fails(name: str) -> None:
    path = bookfiles.ROOT / "chapters" / f"{name}.ipynb"
    solved = [cell for cell in bookfiles.code(path) if student.BEGIN in cell.source]
    assert not [output for cell in solved for output in cell.outputs if output.output_type == "error"]

    notebook = student.convert(bookfiles.ROOT, name)
    # The cells that neither lead to a blank nor from one are the chapter's own, and nbval executes those.
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [cells[i] for i in sorted(around_blanks([cell.source for cell in cells]))]
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=120,
        allow_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    blanks = 0
    for cell in notebook.cells:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if student.BLANK in cell.source:
            blanks += 1
            assert [error.ename for error in errors] == ["WrongAnswer"], f"{cell.source}\n{errors}"
            assert "blank" in errors[0].evalue, errors[0].evalue
        else:
            assert not errors, f"{cell.source}\n{errors}"
    assert blanks == len(solved) >= 5


@each_chapter
def test_the_site_offers_it_with_a_button(name: str) -> None:
    page = bookfiles.SITE / "chapters" / f"{name}.html"
    button = bookfiles.soup(page).select_one("a.btn-student-notebook-button")
    assert button is not None
    file = (page.parent / str(button["href"])).resolve()
    assert file == bookfiles.SITE / "student" / f"{name}.ipynb"
    assert nbformat.read(file, as_version=4) == student.convert(bookfiles.ROOT, name)


@each_chapter
def test_numbers_are_those_of_the_site(name: str) -> None:
    page = bookfiles.by_id(bookfiles.SITE / "chapters" / f"{name}.html")
    for label, known in student.all_labels(bookfiles.ROOT).items():
        if known.chapter != name or label.startswith("sec-"):
            continue
        place = page.get(f"equation-{label}") or page.get(label)
        assert place is not None, label
        shown = place.select_one(".eqno, .caption-number, p.admonition-title")
        assert shown is not None, label
        assert " ".join(shown.get_text().replace("#", "").split()).startswith(known.words), label


def test_an_unknown_directive_or_role_is_an_error() -> None:
    plain = student.PlainMarkdown(chapter="x", labels={}, bibliography=Path("none.bib"))
    plain.in_solution = False
    with pytest.raises(ValueError, match="list-table"):
        plain.plain([":::{list-table} A title", ":::"])
    with pytest.raises(ValueError, match="unheard"):
        plain.plain(["a {unheard}`role`"])
    with pytest.raises(ValueError, match="eq-nowhere"):
        plain.plain(["see {eq}`eq-nowhere`"])


def test_an_interactive_figure_is_said_to_move_on_the_website() -> None:
    labels = {"fig-x": student.Label("Figure 9.1", "x")}
    plain = student.PlainMarkdown(chapter="x", labels=labels, bibliography=Path("none.bib"))
    plain.in_solution = False
    lines = plain.plain([":::{interactive} board", ":static: fig-x", "", "Drag {math}`x`.", ":::"])
    assert [line for line in lines if line] == ["> **On the website, Figure 9.1 can be moved.**", ">", "> Drag $x$."]
