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

# From the bottom to the top: a module imports from its own layer and those below. A name stands for the modules in it.
LAYERS = (
    ("fqgan", "fqgan.errors"),
    ("fqgan.printing", "fqgan.ranks"),
    ("fqgan.schema", "fqgan.files", "fqgan.hub", "fqgan.outputs", "fqgan.pickles", "fqgan.resumable"),
    ("fqgan.ranges", "fqgan.face"),
    ("fqgan.config",),
    ("fqgan.presets",),
    ("fqgan.engine.sharding", "fqgan.engine.recompute"),
    ("fqgan.engine.distributed",),
    (  # leaves
        "fqgan.vision",
        "fqgan.metrics",
        "fqgan.data",
        "fqgan.engine",
        "fqgan.tokenizer.quantize",
        "fqgan.tokenizer.codebook",
        "fqgan.tokenizer.backbone",
        "fqgan.tokenizer.blocks",
        "fqgan.tokenizer.fused",
        "fqgan.tokenizer.discriminator",
        "fqgan.generator.transformer",
        "fqgan.generator.cross_entropy",
        "fqgan.generator.draw",
        "fqgan.generator.step",
        "fqgan.tokenizer.fingerprint",
    ),
    ("fqgan.evaluation", "fqgan.released", "fqgan.card"),
    ("fqgan.sources",),
    ("fqgan.pretrained",),
    (  # models and losses
        "fqgan.generator",
        "fqgan.generator.heads",
        "fqgan.generator.model",
        "fqgan.generator.evaluation",
        "fqgan.generator.pictures",
        "fqgan.generator.sampler",
        "fqgan.generator.samples",
        "fqgan.tokenizer",
        "fqgan.tokenizer.branch",
        "fqgan.tokenizer.model",
        "fqgan.tokenizer.losses",
        "fqgan.tokenizer.adversary",
        "fqgan.tokenizer.evaluation",
        "fqgan.tokenizer.extraction",
        "fqgan.tokenizer.speed",
        "fqgan.tokenizer.start",
        "fqgan.tokenizer.pictures",
        "fqgan.tokenizer.training",
        "fqgan.understanding",
    ),
    ("fqgan.checkpoints", "fqgan.report"),
    ("fqgan.generator.training",),
    ("fqgan.commands", "fqgan.studies"),
    ("fqgan.cli", "fqgan.__main__"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# packages whose modules stand in different layers: each of their modules must be listed by itself
LISTED_ONE_BY_ONE = ("fqgan", "fqgan.tokenizer", "fqgan.generator")
MODULES = {
    ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def layer_of(module: str) -> int | None:
    """The layer of a module: its own entry, else its package's."""
    if module in LAYER_OF:
        return LAYER_OF[module]
    package = module.rpartition(".")[0]
    return None if package in LISTED_ONE_BY_ONE or not package else layer_of(package)


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


def test_every_module_has_a_layer() -> None:
    unknown = [module for module in MODULES if layer_of(module) is None]
    assert not unknown, f"give {', '.join(unknown)} a place in LAYERS of {Path(__file__).name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "fqgan"])
def test_no_module_imports_from_a_higher_layer(module: str) -> None:
    own = layer_of(module)
    for line, other in imported(module):
        layer = layer_of(other)
        assert own is not None and layer is not None and layer <= own, (
            f"{MODULES[module]}:{line}: {module} (layer {own}) must not import {other} (layer {layer})"
        )


def test_the_imports_are_seen() -> None:
    """The test above would pass on nothing: imports at the top, inside functions and of modules as names count."""
    assert {"fqgan.config", "fqgan.sources"} <= {name for _, name in imported("fqgan.checkpoints")}
    assert {"fqgan.checkpoints", "fqgan.metrics.psnr"} <= {name for _, name in imported("fqgan.commands.reconstruct")}
    assert layer_of("fqgan.tokenizer.something_new") is None
    assert layer_of("fqgan.data.something_new") == layer_of("fqgan.data.loader")


@pytest.mark.parametrize(
    "code",
    [
        "import fqgan",
        "from fqgan.cli import main; main(['--help'])",
        "from fqgan.commands.train_tokenizer import parse_run; parse_run(['dual-ds16', '--run', 'x'])",
        *(
            f"import contextlib; from fqgan.errors import UserError; from fqgan.commands.{command} import main\n"
            f"with contextlib.suppress(UserError): main(['hf:org/name', *{rest}])"
            for command, rest in {
                "convert": ["out"],
                "evaluate_generator": ["--data", "photos", "--out", "out.json"],
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
