"""Where the tests of the book find its parts."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import student
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"

DIRECTIVE = re.compile(r"^(:{3,})\{([\w:-]+)\}[ \t]*(.*)$", re.M)


def pages() -> list[Path]:
    """The sources of the book, in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    found = [ROOT / f"{name}{suffix}" for name in names for suffix in (".ipynb", ".md")]
    return [path for path in found if path.is_file()]


def notebooks() -> list[Path]:
    return [path for path in pages() if path.suffix == ".ipynb"]


def chapters() -> list[Path]:
    return [ROOT / "chapters" / f"{name}.ipynb" for name in student.chapters(ROOT)]


@functools.cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def prose(path: Path) -> str:
    """All Markdown of a page."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def code(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def directives(path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Name, title and options of every directive of a page, in order."""
    text = prose(path)
    for match in DIRECTIVE.finditer(text):
        options, _ = student.read_options(text[match.end() + 1 :].splitlines())
        yield match[2], match[3].strip(), options


def labels(path: Path) -> list[str]:
    """Every label that a page defines: of sections, directives, equations and figures."""
    text = prose(path)
    found = re.findall(r"^\(([\w:-]+)\)=[ \t]*$", text, re.M)
    found += [options["label"] for _, _, options in directives(path) if "label" in options]
    found += re.findall(r"\$\$[ \t]*\(([\w:-]+)\)[ \t]*$", text, re.M)
    if path.suffix == ".ipynb":
        figures = (cell.metadata.get("mystnb", {}).get("figure", {}) for cell in code(path))
        found += [figure["name"] for figure in figures if "name" in figure]
    return found


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(), "html.parser")


@functools.cache
def by_id(page: Path) -> dict[str, Tag]:
    return {str(tag["id"]): tag for tag in soup(page).find_all(id=True)}


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The places of a page that a link can name."""
    return frozenset(tag.get(key) for tag in soup(page).find_all(True) for key in ("id", "name") if tag.get(key))


def site_pages() -> list[Path]:
    # The pages exist only once the book is built; `test_the_book_is_built` says so when it is not.
    return sorted(path for path in SITE.rglob("*.html") if "_static" not in path.relative_to(SITE).parts)
