"""The site: it builds without a broken link, and its reference lists all that can be set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fqgan
from fqgan import config
from fqgan.cli import COMMANDS
from fqgan.commands import evaluate, study
from fqgan.config import presets

HOME = Path(fqgan.__file__).parent.parent


@pytest.fixture(scope="module")
def reference(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("reference")


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, str]:
    return reference.pages()


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install 'fqgan[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(HOME)}
    done = subprocess.run(
        command, cwd=HOME, env={**os.environ, **quiet}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = {path.name: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "start.html", "python.html", "commands.html", "log.html"} <= html.keys()
    assert 'id="fqgan.tokenizer.model.FactorizedTokenizer.encode"' in html["python.html"]
    for name, text in html.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\" >]+)[^>]*stylesheet|stylesheet[^>]* href=\"?([^\" >]+)", text)
        assert not [each for each in loaded if "//" in "".join(each)], f"{name} loads from elsewhere"


def section(text: str, title: str) -> str:
    """What stands below a heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^##? |^### |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no {title}"
    return found[1]


def test_the_reference_has_every_command(pages: dict[str, str]) -> None:
    text = pages["reference/commands.md"]
    titles = [f"fqgan {name}" for name in COMMANDS]
    titles += [f"fqgan evaluate {name}" for name in evaluate.SUBJECTS] + [
        f"fqgan study {name}" for name in study.SUBJECTS
    ]
    titles += ["fqgan data info", "fqgan data pack", "fqgan plan photos-dual", "fqgan plan far-photos"]
    assert sorted(re.findall(r"^##+ (fqgan .*)$", text, re.MULTILINE)) == sorted(titles)
    assert "| `--cfg-scale`<br>number ... | `2.0` |" in section(text, "fqgan generate")
    assert "| `CHECKPOINT`<br>path | *required* |" in section(text, "fqgan generate")
    assert "*from* their" not in text


def test_the_reference_has_every_setting_of_runs_with_its_default(reference: ModuleType, pages: dict[str, str]) -> None:
    text = pages["reference/settings.md"]

    def check(value: Any) -> None:
        own = section(text, type(value).__name__)
        for each in fields(value):
            inner = getattr(value, each.name)
            inner = inner[0] if isinstance(inner, tuple) and inner and is_dataclass(inner[0]) else inner
            assert f"| `--{each.name.replace('_', '-')}" in own, each.name
            if is_dataclass(inner):
                check(inner)

    for run in (config.TokenizerRunConfig(), presets.get_generator("far-base"), config.ClassifierRunConfig()):
        for each in fields(run):
            if is_dataclass(getattr(run, each.name)):
                check(getattr(run, each.name))
    assert "| `--batch`<br>integer | `256` |" in section(text, "TokenizerTrainConfig")
    assert "At least 1, at most 16,777,216." in section(text, "FactorConfig")


def test_every_setting_says_what_it_is(reference: ModuleType) -> None:
    silent = []
    for _, _, calls in reference.calls():
        for call in calls:
            options = reference.options_of(call.settings, call.default)
            silent += [f"{call.prog} {each.name}" for each in options if not each.text and each.group is None]
    for kind, (_, value) in reference.groups().items():
        options = reference.options_of(kind, value)
        silent += [f"{kind.__name__} {each.name}" for each in options if not each.text and each.group is None]
    assert not silent
