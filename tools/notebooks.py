"""The notebooks of docs/notebooks: `python tools/notebooks.py [NAME ...]` runs them and keeps what they print and draw.

They run from top to bottom in a folder of their own, `runs/notebooks`, which is emptied first. The site shows them as
pages.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent
NOTEBOOKS = HOME / "docs" / "notebooks"
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def executed(path: Path, folder: Path, kernel: Any = None, **parameters: Any) -> Any:
    """A notebook after all of its cells were run, with other values in its cell of parameters.

    Args:
        folder: where it runs.
        kernel: a running kernel (jupyter_client's KernelManager), which forgets what it knew; None: one of its own.
    """
    import nbformat
    from nbclient import NotebookClient

    kept = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(kept)
    for cell in notebook.cells if parameters else ():
        if "parameters" in cell.metadata.get("tags", ()):
            for name, value in parameters.items():
                cell.source = re.sub(rf"^{name} = \S+", f"{name} = {value!r}", cell.source, flags=re.MULTILINE)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    folder.mkdir(parents=True, exist_ok=True)
    options = {"resources": {"metadata": {"path": str(folder)}}, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, timeout=None, km=kernel, **options).execute()
    del notebook.cells[0]
    numbers = iter(range(1, len(notebook.cells) + 1))
    for cell, before in zip(notebook.cells, kept.cells, strict=True):
        cell.source = before.source
        if cell.cell_type == "code":
            cell.execution_count = next(numbers)
            # progress bars and warnings of libraries
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the names that stand there."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            printed = "".join(output.get("text", data.get("text/plain", "")))
            kind = next((kind for kind in PICTURES if kind in data), "")
            if kind:
                name = f"{path.stem}-{len(pictures) + 1}.{PICTURES[kind]}"
                pictures[name] = base64.b64decode("".join(data[kind]))
                parts.append(f"![what the cell above draws]({name})")
            elif printed.strip():
                parts.append(f"```text\n{printed.rstrip()}\n```")
    parts.append(f"*This page is the notebook docs/notebooks/{path.name} of the repository.*")
    return "\n\n".join(parts) + "\n", pictures


if __name__ == "__main__":
    import nbformat

    folder = HOME / "runs" / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)  # runs of other settings would be refused, and finished ones not shown
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in sys.argv[1:] or sorted(names, key="tour".__ne__):  # the tour first: others go on with its tokenizer
        file = NOTEBOOKS / f"{name}.ipynb"
        nbformat.write(executed(file, folder), file)
        print(file)
