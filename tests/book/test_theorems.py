"""Every theorem of the book has a proof and a test, and every marked test has its theorem."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bookfiles

PROVED = {"prf:theorem", "prf:lemma", "prf:proposition", "prf:corollary"}


def stated() -> Counter[str]:
    return Counter(
        options.get("label", f"(no label) {path.stem}: {title}")
        for path in bookfiles.pages()
        for name, title, options in bookfiles.directives(path)
        if name in PROVED
    )


def marked(path: Path) -> Iterator[tuple[str, str]]:
    """Label and test of every `@pytest.mark.theorem("label")` on a test of a file."""
    for node in ast.walk(bookfiles.syntax(path)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.theorem":
                assert node.name.lower().startswith("test"), f"{path.name}: {node.name} is no test"
                for argument in mark.args:
                    assert isinstance(argument, ast.Constant), f"{path.name}: {node.name}: a label is a plain string"
                    yield str(argument.value), node.name


def test_theorems_and_marked_tests_are_the_same_labels() -> None:
    labels = set(stated())
    tested = {label for path in bookfiles.files_of_tests() for label, _ in marked(path)}
    assert sorted(labels - tested) == [], "stated in the book, without a test"
    assert sorted(tested - labels) == [], "named by a test, stated nowhere"
    assert labels


def test_every_statement_has_a_label_of_its_own() -> None:
    assert [label for label, n in stated().items() if n > 1 or label.startswith("(no label)")] == []


def test_a_proof_follows_every_statement() -> None:
    for path in bookfiles.pages():
        waiting = ""
        for name, _, options in bookfiles.directives(path):
            if name in PROVED:
                assert not waiting, f"{path.stem}: {waiting} has no proof before the next statement"
                waiting = options.get("label", "?")
            elif name == "prf:proof":
                assert waiting, f"{path.stem}: a proof of nothing"
                waiting = ""
        assert not waiting, f"{path.stem}: {waiting} has no proof"
