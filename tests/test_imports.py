"""Imports go one way, and the command line starts without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fqgan

ROOT = Path(fqgan.__file__).parent

# From the bottom to the top. A file imports from its own folder and from folders below it; a folder that is not listed
# belongs to the one around it.
LAYERS = (
    "base",
    "config",
    "engine",
    "models",
    "data",
    "metrics",
    "classifier",
    "nets",
    "tokenizer",
    "generator",
    "evaluation",
    "lab/planning",
    "lab/report",
    "lab/studies",
    "lab/understanding",
    "lab",
    "serve",
    "commands",
    ".",
)
MODULES = {
    ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def layer_of(module: str) -> int | None:
    """The layer of a module's folder."""
    folder = MODULES[module].parent.relative_to(ROOT)
    known = (str(each) for each in (folder, *folder.parents) if str(each) in LAYERS)
    nearest = next(known)
    return LAYERS.index(nearest) if nearest != "." or folder == Path() else None


def imported(module: str) -> Iterator[tuple[int, str]]:
    """(line, module of this package) of every import in a module's file, but those for type checkers only."""
    tree = ast.parse(MODULES[module].read_text())
    unseen = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == ROOT.name)


def test_every_folder_has_a_layer() -> None:
    unknown = {str(path.parent.relative_to(ROOT)) for name, path in MODULES.items() if layer_of(name) is None}
    assert not unknown, f"give {', '.join(unknown)} a place in LAYERS of {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_from_a_higher_layer(module: str) -> None:
    own = layer_of(module)
    for line, other in imported(module):
        layer = layer_of(other)
        assert own is not None and layer is not None and layer <= own, (
            f"{MODULES[module]}:{line}: {module} (layer {own}) must not import {other} (layer {layer})"
        )


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = {module: {name for _, name in imported(module)} - {module} for module in MODULES}
    while ends := {module for module, names in imports.items() if not names & imports.keys()}:
        imports = {module: names for module, names in imports.items() if module not in ends}
    assert not imports, f"these import each other, or what does: {', '.join(imports)}"


def test_the_imports_are_seen() -> None:
    """The tests above would pass on nothing: imports at the top, inside functions and of modules as names count."""
    assert {"fqgan.config", "fqgan.tokenizer.model"} <= {name for _, name in imported("fqgan.generator.carrying")}
    assert {"fqgan.engine.session", "fqgan.tokenizer.extraction"} <= {
        name for _, name in imported("fqgan.commands.extract")
    }
    assert layer_of("fqgan.data.sources.tar") == layer_of("fqgan.data.loader")


@pytest.mark.parametrize(
    "code",
    [
        "import fqgan",
        "from fqgan.cli import main; main(['--help'])",
        "from fqgan.commands.train_tokenizer import COMMAND; COMMAND.parse(['dual-ds16', '--run', 'x'])",
        *(
            f"import contextlib; from fqgan.base.errors import UserError; from fqgan.commands.{command} import main\n"
            f"with contextlib.suppress(UserError): main(['hf:org/name', *{rest}])"
            for command, rest in {
                "convert": ["out"],
                "evaluate_codes": ["--data", "photos", "--out", "out.json"],
                "evaluate_generator": ["--data", "photos", "--out", "out.json"],
                "evaluate_likelihood": ["--data", "photos", "--out", "out"],
                "evaluate_tokenizer": ["--data", "photos", "--out", "out.json"],
                "extract": ["--data", "photos", "--out", "out"],
                "generate": ["--out", "out"],
                "reconstruct": ["x.png", "--out", "out"],
                "study_understanding": ["--lm", "tiny", "--data", "x", "--out", "out"],
            }.items()
        ),
    ],
)
def test_torch_is_not_loaded_before_it_is_needed(code: str, tmp_path: Path) -> None:
    check = "import sys; slow = {'torch', 'numpy', 'PIL'} & set(sys.modules); assert not slow, slow"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
