"""Student notebooks: a chapter with blanks for solutions, in Markdown that any notebook viewer understands.

The chapter is the one source. nbgrader's ClearSolutions makes the blanks; PlainMarkdown turns what only MyST understands
(directives, roles, labels) into headings, quotes and links, with the numbers that the site shows.

    python _ext/student.py                          every chapter of the table of contents into _build/student
    python _ext/student.py chapters/pooling.ipynb   that one
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbconvert.preprocessors import ClearMetadataPreprocessor, ClearOutputPreprocessor, Preprocessor
from nbformat import NotebookNode
from traitlets import Any as AnyTrait
from traitlets import Unicode
from traitlets.config import Config

BEGIN, END = "# one solution", "# end of the solution"
BLANK = 'raise NotImplementedError("your answer here")'

OPEN = re.compile(r"^(:{3,})\{([\w:-]+)\}[ \t]*(.*)$")
CLOSE = re.compile(r"^(:{3,})[ \t]*$")
OPTION = re.compile(r"^:([\w-]+):[ \t]*(.*)$")
TARGET = re.compile(r"^\(([\w:-]+)\)=[ \t]*$")
FENCE = re.compile(r"^(`{3,}|~{3,})")
ROLE = re.compile(r"\{([\w:+-]+)\}`([^`]+)`")
WITH_TEXT = re.compile(r"^(.*?)\s*<([^<>]+)>$", re.S)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((#[^)\s]+|[^):\s]+\.(?:md|ipynb)(?:#[^)\s]*)?)\)")
MATH_END = re.compile(r"\$\$(?:[ \t]*\(([\w:-]+)\))?[ \t]*$")
EQUATION = re.compile(r"^(?!\s*`).*\$\$[ \t]*\(([\w:-]+)\)[ \t]*$")

BOXES = {"note", "warning", "tip", "important", "hint", "caution", "attention", "danger", "seealso"}
# Their content is the answer, or means something to the site alone.
DROPPED = {"solution", "bibliography", "contents", "toctree", "index"}
CODE_ROLES = {"func", "class", "mod", "meth", "attr", "obj", "exc", "data", "code", "file", "kbd", "command"}


@dataclass(frozen=True)
class Label:
    """What a label names: the words for a reference to it, and the chapter it stands in."""

    words: str
    chapter: str


def chapters(book: Path) -> dict[str, int]:
    """Names of the chapters that exist, with their numbers on the site: the numbered parts of the table of contents."""
    parts = yaml.safe_load((book / "_toc.yml").read_text())["parts"]
    files = [chapter["file"] for part in parts if part.get("numbered") for chapter in part["chapters"]]
    return {Path(file).name: n for n, file in enumerate(files, 1) if (book / f"{file}.ipynb").is_file()}


def prose(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, list[str]]]:
    for cell in notebook.cells:
        yield cell, cell.source.splitlines() if cell.cell_type == "markdown" else []


def collect(notebook: NotebookNode, chapter: str, number: int) -> dict[str, Label]:
    """Every label of a chapter, numbered as Sphinx does: one counter for each kind, starting anew in each chapter."""
    labels: dict[str, Label] = {}
    counters: dict[str, int] = {}

    def count(kind: str) -> str:
        counters[kind] = counters.get(kind, 0) + 1
        return f"{number}.{counters[kind]}"

    for cell, lines in prose(notebook):
        pending: list[str] = []
        for n, line in enumerate(lines):
            if target := TARGET.match(line):
                pending.append(target[1])
            elif line.startswith("#") and pending:
                labels |= {label: Label(line.lstrip("# "), chapter) for label in pending}
                pending = []
            if equation := EQUATION.match(line):
                labels[equation[1]] = Label(f"({count('equation')})", chapter)
            if not (opening := OPEN.match(line)):
                continue
            kind = opening[2].removeprefix("prf:")
            if kind != "exercise" and (not opening[2].startswith("prf:") or kind == "proof"):
                continue
            options, _ = read_options(lines[n + 1 :])
            words = kind.title() if "nonumber" in options else f"{kind.title()} {count(kind)}"
            if "label" in options:
                labels[options["label"]] = Label(words, chapter)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure and figure.get("caption"):
            labels[figure.get("name", cell.get("id", ""))] = Label(f"Figure {count('figure')}", chapter)
    return labels


def read_options(lines: list[str]) -> tuple[dict[str, str], int]:
    """The ``:key: value`` lines at the head of a directive, and how many there are."""
    options: dict[str, str] = {}
    for n, line in enumerate(lines):
        if not (option := OPTION.match(line)):
            return options, n
        options[option[1]] = option[2].strip()
    return options, len(lines)


def quote(lines: list[str]) -> list[str]:
    """A Markdown quote. A formula in it stands on one line: Jupyter would read the marks of further lines as ``>``."""
    quoted: list[str] = []
    formula: list[str] | None = None
    for line in lines:
        if formula is not None:
            formula.append(line)
            if line.rstrip().endswith("$$"):
                quoted.append(" ".join(formula))
                formula = None
        elif line.lstrip().startswith("$$") and line.count("$$") == 1:
            formula = [line]
        else:
            quoted.append(line)
    return [f"> {line}".rstrip() for line in quoted + (formula or [])]


@functools.cache
def citations(bibliography: Path) -> dict[str, tuple[str, str]]:
    """``{key: (authors, year)}`` of the bibliography."""
    from pybtex.database import parse_file

    def authors(people: list[Any]) -> str:
        names = [" ".join(p.prelast_names + p.last_names).replace("{", "").replace("}", "") for p in people]
        return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)

    entries = parse_file(str(bibliography), "bibtex").entries
    return {key: (authors(e.persons.get("author", [])), e.fields.get("year", "")) for key, e in entries.items()}


class PlainMarkdown(Preprocessor):
    """Turns MyST into Markdown that every viewer renders. Raises ValueError at a directive or role it does not know."""

    chapter = Unicode(help="name of the chapter")
    labels = AnyTrait(help="every label of the book: dict[str, Label]")
    bibliography = AnyTrait(help="path of the .bib file")

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        cells: list[NotebookNode] = []
        self.in_solution = False
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = "\n".join(self.plain(cell.source.splitlines())).strip()
                cell.source = re.sub(r"\n{3,}", "\n\n", cell.source)
                if cell.source:
                    cells.append(cell)
                continue
            if self.in_solution and BLANK not in cell.source:
                continue  # code of the solution without a blank in it
            cells.append(cell)
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if figure.get("caption"):
                words = self.words(figure.get("name", cell.get("id", "")))
                caption = nbformat.v4.new_markdown_cell(f"**{words}.** {self.roles(figure['caption'])}")
                caption["id"] = f"{cell['id'][:56]}-caption"
                cells.append(caption)
        nb.cells = cells
        return nb, resources

    def words(self, label: str) -> str:
        if label not in self.labels:
            raise ValueError(f"{self.chapter}: no label {label!r} in any chapter")
        return str(self.labels[label].words)

    def plain(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        n = 0
        while n < len(lines):
            line = lines[n]
            n += 1
            if fence := FENCE.match(line):
                end = next((m for m in range(n, len(lines)) if lines[m].startswith(fence[1])), len(lines) - 1)
                block, n = [line, *lines[n : end + 1]], end + 1
            elif opening := OPEN.match(line):
                end = next(
                    (m for m in range(n, len(lines)) if (c := CLOSE.match(lines[m])) and len(c[1]) >= len(opening[1])),
                    len(lines),
                )
                block, n = self.directive(opening[2], opening[3].strip(), lines[n:end]), end + 1
            elif line.lstrip().startswith("$$"):
                end = n - 1
                if not MATH_END.search(line.lstrip()[2:]):
                    end = next((m for m in range(n, len(lines)) if MATH_END.search(lines[m])), len(lines) - 1)
                block, n = [self.tag(part) for part in lines[n - 1 : end + 1]], end + 1
            elif TARGET.match(line) or line.startswith("%"):
                block = []
            else:
                block = [self.roles(line)]
            if not self.in_solution:
                out += block
        return out

    def tag(self, line: str) -> str:
        """``$$ (eq-label)`` at the end of a formula, as the number that the site shows."""
        end = MATH_END.search(line)
        if not end or not end[1]:
            return line
        return f"{line[: end.start()].rstrip()} \\tag{{{self.words(end[1]).strip('()')}}} $$".lstrip()

    def directive(self, name: str, title: str, body: list[str]) -> list[str]:
        if name == "solution-start":
            self.in_solution = True
            return []
        if name == "solution-end":
            self.in_solution = False
            return []
        if name in DROPPED:
            return []
        options, skip = read_options(body)
        content, title = self.plain(body[skip:]), self.roles(title)
        while content and not content[0].strip():
            content = content[1:]
        if name == "prf:proof":
            return ["", f"*{title or 'Proof'}.*", "", *content, "", "∎", ""]
        words = self.words(options["label"]) if "label" in options else name.removeprefix("prf:").title()
        if name == "exercise":
            return ["", f"### {words}{': ' if title else ''}{title}", "", *content, ""]
        if name.startswith("prf:"):
            return ["", *quote([f"**{words}{f' ({title})' if title else ''}.**", "", *content]), ""]
        if name in BOXES or name in ("admonition", "dropdown"):
            heading = title if name in ("admonition", "dropdown") else name.title()
            return ["", *quote([f"**{heading}.** {title if name in BOXES else ''}".rstrip(), "", *content]), ""]
        if name == "interactive":
            heading = f"**On the website, {self.words(options['static'])} can be moved.**"
            return ["", *quote([heading, "", *content]), ""]
        if name in ("figure", "image"):
            return ["", f"![{options.get('alt', '')}]({title})", "", *content, ""]
        raise ValueError(f"{self.chapter}: the student notebook has no plain form for the directive {name!r}")

    def roles(self, line: str) -> str:
        """Roles and links to labels, outside `code`."""
        line = ROLE.sub(lambda m: self.role(m[1], m[2]), line)
        return LINK.sub(self.link, line)

    def link(self, match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if target.startswith("#"):
            return self.reference(target[1:], text)
        file = Path(target.split("#")[0])
        known = {label.chapter for label in self.labels.values()}
        return f"[{text or file.stem}]({file.stem}.ipynb)" if file.stem in known else text or f"*{file.stem}*"

    def reference(self, label: str, text: str = "") -> str:
        # A page that is no chapter (the notation, say) has no student notebook: its words alone.
        if label not in self.labels and text:
            return text
        words = text or self.words(label)
        chapter = self.labels[label].chapter
        return words if chapter == self.chapter else f"[{words}]({chapter}.ipynb)"

    def role(self, name: str, content: str) -> str:
        explicit = WITH_TEXT.match(content)
        text, target = (explicit[1], explicit[2]) if explicit else ("", content)
        kind = name.split(":")[-1]
        if name.startswith("cite"):
            found = [citations(self.bibliography)[key.strip()] for key in content.split(",")]
            if name in ("cite:t", "cite:ct"):
                return ", ".join(f"{who} ({year})" for who, year in found)
            return "(" + "; ".join(f"{who}, {year}" for who, year in found) + ")"
        if kind in ("ref", "eq", "numref"):
            if kind == "numref" and text:
                text = text.replace("%s", self.words(target).split()[-1]).replace(
                    "{number}", self.words(target).split()[-1]
                )
            return self.reference(target, text)
        if kind == "doc":
            stem = Path(target).name
            known = {label.chapter for label in self.labels.values()}
            return f"[{text or stem}]({stem}.ipynb)" if stem in known else text or f"*{stem}*"
        if kind == "math":
            return f"${content}$"
        if kind in CODE_ROLES:
            return f"`{text or target.lstrip('~')}`"
        plain: dict[str, Callable[[], str]] = {
            "abbr": lambda: text or content,
            "term": lambda: text or content,
            "sub": lambda: content,
        }
        if kind in plain:
            return plain[kind]()
        raise ValueError(f"{self.chapter}: the student notebook has no plain form for the role {name!r}")


@functools.cache
def all_labels(book: Path) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for name, number in chapters(book).items():
        labels |= collect(nbformat.read(book / "chapters" / f"{name}.ipynb", as_version=4), name, number)
    return labels


def convert(book: Path, name: str) -> NotebookNode:
    """The student notebook of one chapter."""
    from nbgrader.preprocessors import ClearSolutions

    notebook = nbformat.read(book / "chapters" / f"{name}.ipynb", as_version=4)
    blanks = Config(
        ClearSolutions={
            "begin_solution_delimeter": BEGIN,
            "end_solution_delimeter": END,
            "code_stub": {"python": BLANK},
            "enforce_metadata": False,  # our cells are marked by comments alone
        }
    )
    steps: list[Preprocessor] = [
        ClearSolutions(config=blanks),
        PlainMarkdown(chapter=name, labels=all_labels(book), bibliography=book / "chapters" / "references.bib"),
        ClearOutputPreprocessor(),
        ClearMetadataPreprocessor(clear_notebook_metadata=False),
    ]
    resources: dict[str, Any] = {}
    for step in steps:
        notebook, resources = step.preprocess(notebook, resources)
    how = nbformat.v4.new_markdown_cell(
        f"*A notebook to work in: replace each line `{BLANK}` by your answer and run the cell. "
        "The `check` below it tries your answer and says what it found.*"
    )
    how["id"] = "how-to-work"
    notebook.cells.insert(1, how)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.validate(notebook)
    return notebook


def write_all(book: Path, folder: Path, names: list[str] | None = None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    all_labels.cache_clear()
    written = []
    for name in names or list(chapters(book)):
        nbformat.write(convert(book, name), folder / f"{name}.ipynb")
        written.append(folder / f"{name}.ipynb")
    return written


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    for path in write_all(root, root / "_build" / "student", [Path(argument).stem for argument in sys.argv[1:]]):
        print(path.relative_to(root))
