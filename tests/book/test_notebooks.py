"""The notebooks as they are committed: executed, readable in any viewer, and complete."""

from __future__ import annotations

import ast
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bookfiles
import nbformat
import pytest

IMAGES = {"image/png", "image/svg+xml", "image/jpeg"}

each_notebook = pytest.mark.parametrize("path", bookfiles.notebooks(), ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", bookfiles.chapters(), ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", bookfiles.pages(), ids=lambda path: path.stem)


def first_line(cell: nbformat.NotebookNode) -> str:
    return cell.source.strip().splitlines()[0] if cell.source.strip() else "(empty cell)"


@each_notebook
def test_every_cell_was_executed_in_order_without_an_error(path: Path) -> None:
    cells = bookfiles.code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run: nox -s execute"
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", first_line(cell)
            assert output.get("name") != "stderr", first_line(cell)


@each_notebook
def test_every_figure_has_a_label_a_caption_and_alt_text(path: Path) -> None:
    for cell in bookfiles.code(path):
        if not any(IMAGES & set(output.get("data", {})) for output in cell.outputs):
            continue
        metadata = cell.metadata.get("mystnb", {})
        figure, image = metadata.get("figure", {}), metadata.get("image", {})
        assert figure.get("name", "").startswith("fig-"), first_line(cell)
        assert len(figure.get("caption", "")) > 20, first_line(cell)
        assert len(image.get("alt", "")) > 20, first_line(cell)


def private_uses(source: str) -> Iterator[str]:
    """What a cell takes from pwl_lib that is not public: a private name, or one that does not exist."""
    modules: dict[str, str] = {}
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!"))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pwl_lib":
                    modules[alias.asname or "pwl_lib"] = alias.name if alias.asname else "pwl_lib"
                    importlib.import_module(alias.name)
                    yield from (alias.name for part in alias.name.split(".") if part.startswith("_"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pwl_lib":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                try:
                    importlib.import_module(name)
                    modules[alias.asname or alias.name] = name
                    public = True
                except ModuleNotFoundError:
                    public = alias.name in getattr(module, "__all__", dir(module))
                if not public or any(part.startswith("_") for part in name.split(".")):
                    yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) in modules:
            yield f"{modules[ast.unparse(node.value)]}.{node.attr}"


@each_notebook
def test_only_public_names_of_the_library_are_used(path: Path) -> None:
    assert not list(private_uses("\n".join(cell.source for cell in bookfiles.code(path))))


@each_notebook
def test_cells_are_short(path: Path) -> None:
    for cell in bookfiles.code(path):
        lines = len(cell.source.splitlines())
        assert lines <= 20, f"{lines} lines: {first_line(cell)}"
        if lines > 12:
            warnings.warn(f"{path.stem}: a cell of {lines} lines: {first_line(cell)}", stacklevel=1)


@each_notebook
def test_no_output_names_a_place_on_a_machine(path: Path) -> None:
    text = repr([cell.outputs for cell in bookfiles.code(path)])
    assert not re.search(r"(?<![\w.])/(root|home|tmp|work|usr|opt|Users|private|var)/", text)
    assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), "an address in memory"


@each_page
def test_formulas_use_no_macros(path: Path) -> None:
    macro = r"\\(newcommand|renewcommand|providecommand|DeclareMathOperator|def|let|require)\b"
    assert not re.search(macro, bookfiles.prose(path))


@each_notebook
def test_directives_stand_in_colon_fences(path: Path) -> None:
    assert not re.search(r"^\s*(`{3,}|~{3,})\{", bookfiles.prose(path), re.M)


def test_a_label_is_unique_in_the_book() -> None:
    count = Counter(label for path in bookfiles.pages() for label in bookfiles.labels(path))
    assert [label for label, n in count.items() if n > 1] == []


@each_chapter
def test_labels_have_the_prefix_of_their_kind(path: Path) -> None:
    prefixes = {"theorem": "thm", "lemma": "lem", "proposition": "prop", "corollary": "cor", "definition": "def"}
    for name, title, options in bookfiles.directives(path):
        kind = name.removeprefix("prf:")
        if kind in prefixes:
            assert options.get("label", "").startswith(f"{prefixes[kind]}-"), title or name
        if kind == "exercise":
            assert options.get("label", "").startswith("ex-"), title


@each_chapter
def test_the_anatomy_of_a_chapter_is_whole(path: Path) -> None:
    kinds = Counter(name for name, _, _ in bookfiles.directives(path))
    headings = " | ".join(re.findall(r"^##+ (.*)$", bookfiles.prose(path), re.M)).lower()
    source = "\n".join(cell.source for cell in bookfiles.code(path))
    missing = {
        "a numbered definition": kinds["prf:definition"] >= 1,
        "a theorem with its proof": kinds["prf:theorem"] >= 1 and kinds["prf:proof"] >= 1,
        "a SymPy derivation": "sympy" in source,
        "the source of a pwl_lib function (inspect.getsource)": "getsource" in source,
        "a check that asserts": source.count("assert") >= 3,
        "a figure": "fig-" in " ".join(bookfiles.labels(path)),
        "a heading about what goes wrong": "wrong" in headings,
        "a heading Summary": "summary" in headings,
        "a heading Exercises": "exercises" in headings,
    }
    assert [what for what, there in missing.items() if not there] == []


@each_chapter
def test_every_exercise_has_a_folded_solution_with_a_blank_and_a_check(path: Path) -> None:
    exercises = [options.get("label") for name, _, options in bookfiles.directives(path) if name == "exercise"]
    assert len(exercises) >= 5
    solutions = {title: options for name, title, options in bookfiles.directives(path) if name == "solution-start"}
    assert sorted(solutions) == sorted(map(str, exercises))
    assert all(options.get("class") == "dropdown" for options in solutions.values())

    inside, answered = "", []
    for cell in bookfiles.read(path).cells:
        if cell.cell_type == "markdown":
            for match in re.finditer(r"^:{3,}\{solution-(start|end)\}[ \t]*(.*)$", cell.source, re.M):
                inside = match[2].strip() if match[1] == "start" else ""
        elif "# one solution" in cell.source:
            assert inside, f"a solution outside of a folded box: {first_line(cell)}"
            # Inside the function, so that a blank is a function which the checker can call.
            assert re.search(r"^[ ]+# one solution$", cell.source, re.M), first_line(cell)
            assert re.search(r"^[ ]+# end of the solution$", cell.source, re.M), first_line(cell)
            assert re.search(rf"check\.{path.stem}\.\w+\(|check\.\w+\(", cell.source), first_line(cell)
            answered.append(inside)
    assert sorted(set(answered)) == sorted(solutions), "each solution has a code cell with the two marker comments"
