"""The ledger of claims: complete, and every row is settled in the book and tested."""

from __future__ import annotations

import ast

import bookfiles
import pytest
import yaml

ROWS = yaml.safe_load((bookfiles.ROOT / "chapters" / "claims.yml").read_text())["rows"]

SECTIONS = {0: 10, 1: 20, 2: 23, 3: 5, 4: 23}
VERDICTS = {"true", "say more", "fix", "complete", "answer"}


def test_every_claim_has_one_row() -> None:
    expected = [f"S{section}.{n}" for section, last in SECTIONS.items() for n in range(1, last + 1)]
    assert sorted(row["id"] for row in ROWS) == sorted(expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_a_row_is_whole_and_can_be_followed(row: dict) -> None:
    assert row["claim"].strip()
    assert row["verdict"] in VERDICTS
    assert row["finding"].strip()
    assert row["section"] in {label for path in bookfiles.pages() for label in bookfiles.labels(path)}
    assert row["tests"], "a claim names its tests"
    for test in row["tests"]:
        file, *names = test.split("[")[0].split("::")
        path = bookfiles.ROOT / file
        assert path.is_file(), test
        if path.suffix != ".py":
            continue
        assert names, f"{test}: a file is no test"
        scope: ast.AST = bookfiles.syntax(path)
        for name in names:
            found = [
                node
                for node in ast.iter_child_nodes(scope)
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
            ]
            assert found, f"{test}: no {name}"
            scope = found[0]


def test_the_page_shows_every_claim_with_its_verdict() -> None:
    page = bookfiles.soup(bookfiles.SITE / "chapters" / "claims.html")
    plain = str.maketrans("’“”", '\'""')  # the site sets typographic quotes
    shown = [
        [cell.get_text(" ", strip=True).translate(plain) for cell in line.find_all("td")]
        for line in page.find_all("tr")
    ]
    shown = [line for line in shown if line and line[0].startswith("S")]
    assert [(line[0], line[1], line[2]) for line in shown] == [
        (row["id"], row["claim"], row["verdict"]) for row in ROWS
    ]
    assert {len(line) for line in shown} == {4}
