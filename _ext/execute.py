"""Executes notebooks in place, several side by side: `python _ext/execute.py [chapter ...]`.

What differs from machine to machine (times, versions, names of kernels) is left out, so that a run without a change is no diff.
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def normalise(notebook: NotebookNode) -> NotebookNode:
    seen: set[str] = set()
    for cell in notebook.cells:
        for noise in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(noise, None)
        # An id made of the content: the same cell has the same id on every machine, and after every conversion from text.
        name, n = cell.source, 0
        while (identifier := hashlib.sha256(f"{name}{n or ''}".encode()).hexdigest()[:8]) in seen:
            n += 1
        seen.add(identifier)
        cell["id"] = identifier
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(path: Path) -> Path:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    nbformat.write(normalise(notebook), path)
    return path


def find(name: str) -> Path:
    """`rectifiers`, `chapters/rectifiers.ipynb` or `index`."""
    stem = Path(name).stem
    for path in (ROOT / "chapters" / f"{stem}.ipynb", ROOT / f"{stem}.ipynb"):
        if path.is_file():
            return path
    raise SystemExit(f"no notebook named {name!r} in chapters/ or beside it")


def main(names: list[str]) -> int:
    paths = [find(name) for name in names] or [
        *sorted(ROOT.glob("*.ipynb")),
        *sorted((ROOT / "chapters").glob("*.ipynb")),
    ]
    workers = max(2, os.cpu_count() or 1)
    failed = 0
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(paths), unit="notebook") as bar:
        jobs = {pool.submit(execute, path): path for path in paths}
        for job in as_completed(jobs):
            bar.update()
            try:
                bar.write(f"executed {job.result().relative_to(ROOT)}")
            except CellExecutionError as error:
                failed += 1
                bar.write(f"FAILED {jobs[job].relative_to(ROOT)}, left as it was\n{error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
