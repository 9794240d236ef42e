"""The commands: versions are pinned, and what the README says is what CI runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sysconfig
from importlib.metadata import distributions

import bookfiles
import pytest

ROOT = bookfiles.ROOT
SET_UP = (
    "python3 -m venv .venv && .venv/bin/python -m pip install -q -c constraints.txt nox && .venv/bin/python -m nox -s "
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_library_imports_nothing_of_the_book() -> None:
    for path in (ROOT / "pwl_lib").rglob("*.py"):
        for node in ast.walk(bookfiles.syntax(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"tests", "chapters", "benchmarks", "student"}, path


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    rows = [line.split("#")[0].strip() for line in lines]
    return {normal(name): version for name, version in (row.split("==") for row in rows if row)}


def test_every_installed_package_is_pinned() -> None:
    # What venv itself brings, the project, and what CUDA builds of torch bring along, which torch pins itself.
    free = re.compile(r"pip|setuptools|wheel|pwl-lib|nvidia-.*|cuda-.*|triton|appnope|colorama")
    # Not sys.path: setuptools, once it is imported, adds to it what it carries along.
    places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # A local version (`2.13.0+cpu`) names a build; a pin that had one could not be met elsewhere.
    installed = {normal(d.metadata["Name"]): d.version.split("+")[0] for d in distributions(path=places)}
    known = pins()
    wrong = {n: (v, known.get(n)) for n, v in installed.items() if not free.fullmatch(n) and known.get(n) != v}
    assert wrong == {}


def test_no_pin_names_a_local_version() -> None:
    assert "torch" in pins()
    assert [name for name, version in pins().items() if "+" in version] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in readme if " nox -s " in line and line.startswith("python3 ")] == [
        SET_UP + "book",
        SET_UP + "test",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    search = re.search(r"^command=\$\((grep .*)\)$", script, re.M)
    assert search is not None
    found = subprocess.run(["bash", "-c", search[1]], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == SET_UP + "test"
    assert re.search(r'^eval "\$command"$', script, re.M)
    assert "set -euo pipefail" in script


def test_every_task_of_the_guide_exists() -> None:
    tasks = set(re.findall(r"^\| `nox -s (\w+)", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
    sessions = {
        node.name
        for node in bookfiles.syntax(ROOT / "noxfile.py").body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert tasks
    assert tasks <= sessions


@pytest.mark.parametrize("path", bookfiles.files_of_tests(), ids=lambda path: path.stem)
def test_tests_of_the_book_are_never_skipped(path) -> None:  # type: ignore[no-untyped-def]
    if path.parent.name != "book":
        return
    for node in ast.walk(bookfiles.syntax(path)):
        if isinstance(node, ast.Attribute):
            assert not re.fullmatch("skip|skipif|importorskip|xfail", node.attr), f"line {node.lineno}"
