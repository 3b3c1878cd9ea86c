"""The command line: help, mistakes in one line, and training, reconstructing and evaluating on tiny pictures."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import COMMANDS, main
from fqgan.commands.arguments import parse
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import PRESETS
from fqgan.data.transforms import to_uint8
from fqgan.engine.run import read_stats

Refused = Callable[..., str]


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a successful command prints; the parser's help ends in SystemExit(0)."""
    try:
        status = main(list(argv))
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    return printed.out


def test_bash_completes_as_the_documentation_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/start.md").read_text()
    (block,) = (text for text in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "complete -o" in text)
    words = [["tr"], ["evaluate", "co"], ["quickstart", "--run", "runs/x", "--ste"], ["quickstart", "--run", ""]]
    calls = [f'{{ COMP_WORDS=(fqgan {" ".join(each[:-1])} "{each[-1]}"); COMP_CWORD={len(each)}; '
             f'_fqgan fqgan "{each[-1]}"; echo "${{COMPREPLY[*]}}"; }}' for each in words]  # fmt: skip
    script = "\n".join([f'fqgan() {{ "{sys.executable}" -m fqgan "$@"; }}', block, "complete -p fqgan", *calls])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "complete -o default -F _fqgan fqgan",
        "train-tokenizer train-generator train-classifier",
        "codes compare",
        "--steps",
        "",
    ]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"], ["help"]):
        text = output(capsys, *argv)
        assert all(name in text for name in COMMANDS)
    assert output(capsys, "--version") == f"fqgan {fqgan.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"usage: fqgan {command}" in output(capsys, command, "--help")


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("reconstruct", "(default: reconstructions)"),
        ("evaluate tokenizer", "(default: 32)"),
        ("train-tokenizer photos-dual", "(default: 0.003)"),
        ("train-tokenizer dual-ds16", "(default: 0.0002)"),
    ],
)
def test_help_shows_the_defaults(command: str, default: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, *command.split(), "--help")
    assert f"usage: fqgan {command}" in text
    assert default in re.sub(r"[│\s]+", " ", text)  # the parser breaks lines anywhere


def test_the_help_of_training_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "train-tokenizer", "--help")
    assert all(name in text for name in PRESETS)


@pytest.mark.parametrize(("argument", "status"), [("--version", 0), ("wrong", 2), ("convert --help", 0)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_ends_before_its_interpreter_is_torn_down(argument: str, status: int, ranks: int) -> None:
    """With what it printed and its exit functions run, as one process ends; tearing down is where gloo aborts."""
    code = f"""
import atexit, sys
from fqgan.cli import run
class Held:
    def __del__(self): sys.__stderr__.write("torn down")
held = Held()
atexit.register(print, "exit function", file=sys.stderr)
sys.argv = ["fqgan", *{argument.split()}]
run()
"""
    environment = {**os.environ, "WORLD_SIZE": str(ranks), "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert ("fqgan" in done.stdout) if status == 0 else ("unknown command 'wrong'" in done.stderr)
    assert "exit function" in done.stderr
    assert ("torn down" in done.stderr) == (ranks == 1)


TRAIN = "train-tokenizer photos-dual --run x"


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("train-tokeniser", ["unknown command 'train-tokeniser'; did you mean 'train-tokenizer'?"]),
        ("train-tokenizer", ["name a preset first", "photos-dual"]),
        ("train-tokenizer dual-ds15", ["unknown preset 'dual-ds15'; did you mean 'dual-ds16'?"]),
        ("train-tokenizer photos-dual", ["--run is missing"]),
        (f"{TRAIN} --optimiser.lr 1", ["unknown option --optimiser.lr; did you mean '--optimizer.lr'?"]),
        (f"{TRAIN} --model.factors.2.name x", ["unknown option --model.factors.2.name; did you mean"]),
        (f"{TRAIN} --optimizer.lr fast", ["error: Error parsing --optimizer.lr: could not convert string"]),
        (f"{TRAIN} --train.device gpu", ["error: invalid choice 'gpu' for argument '--train.device'"]),
        (f"{TRAIN} --train.steps", ["error: Missing value for argument '--train.steps'"]),
        (f"{TRAIN} stray", ["error: Unrecognized options: stray; see fqgan"]),
        (f"{TRAIN} -q", ["unknown option -q"]),
        (f"{TRAIN} --num-factors 0", ["--num-factors must be an integer from 1 to 100, got '0'"]),
        (f"{TRAIN} --config nowhere.json", ["nowhere.json does not exist"]),
        (f"{TRAIN} --optimizer.lr -1", ["optimizer.lr must be above 0, got -1.0"]),
        ("reconstruct", ["error: Missing from fqgan reconstruct: CHECKPOINT A run folder"]),
        ("reconstruct x", ["name at least one picture"]),
        ("reconstruct x y.png --sizes 3", ["unknown option --sizes; did you mean '--size'?"]),
        ("reconstruct x y.png --size -4", ["--size must be at least 0, got -4"]),
        ("evaluate", ["name what to evaluate"]),
        ("evaluate tokeniser x", ["cannot evaluate 'tokeniser'; did you mean 'tokenizer'?"]),
        ("evaluate tokenizer x", ["error: Missing from fqgan evaluate tokenizer: --data STR"]),
        ("evaluate tokenizer x --data y --weights both", ["--weights", "'both'"]),
        ("evaluate tokenizer x --data y --batch 0", ["--batch must be at least 1, got 0"]),
    ],
)
def test_a_mistake_is_told_in_one_line(
    line: str, messages: list[str], refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused(*line.split())
    assert all(message in told for message in messages), told
    assert not any(tmp_path.iterdir())


@dataclass(frozen=True)
class Options:
    """Options of no command."""

    count: int = 3
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "x" * 150], f"Error parsing --count: invalid literal for int() with base 10: '{'x' * 150}'"),
        (["--kind", "c"], "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b')"),
        (["--count"], "Missing value for argument '--count'. Expected 1 values"),
        (["stray"], "Unrecognized options: stray"),
    ],
)
def test_the_parsers_messages_are_plain_sentences(
    argv: list[str], message: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the message was the parser's whole box with its colours, without UTF-8 the box in ASCII, and
    long words were broken in two."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(UserError) as error:
        parse(Options, argv, "fqgan test", "")
    assert str(error.value) == f"{message}; see fqgan test --help"


@pytest.fixture(scope="module", params=[1, 2, 3])
def run(request: pytest.FixtureRequest, tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with k = 1, 2 and 3 factors, trained by the command."""
    folder = tmp_path_factory.mktemp(f"k{request.param}")
    schema.save(tiny, folder / "tiny.json")
    options = ["--config", str(folder / "tiny.json"), "--num-factors", str(request.param), "--train.ema-decay", "0.5"]
    assert main(["train-tokenizer", "dual-ds16", "--run", str(folder / "run"), *options]) == 0
    return folder / "run"


def test_training_leaves_a_run_folder(run: Path) -> None:
    assert [line["step"] for line in read_stats(run)] == [1, 2]
    line = read_stats(run)[-1]
    assert {"lr", "images_seen", "reconstruction_loss", "entropy_loss", "visual_usage"} <= set(line)
    num_factors = len(schema.load(TokenizerRunConfig, run / "config.json").model.factors)
    assert ("disentangle_loss" in line) == (num_factors > 1)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert (run / "images" / "step-00000002.png").is_file()
    assert any((run / "tensorboard").iterdir())
    assert not [path.name for path in run.rglob("*") if path.name.startswith(".")], "nothing half-written"


def test_reconstruct_writes_pictures_codes_and_psnr(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [pictures / "0.png", pictures / "1.png", pictures / "0.png"]
    lines = output(capsys, "reconstruct", str(run), *map(str, files), "--out", str(tmp_path / "out")).splitlines()
    stems = ["0", "1", "0-2"]  # pictures of one name do not overwrite each other
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".png", ".npz")
    )
    tokenizer = fqgan.load_tokenizer(run)
    images = fqgan.load_images(files, size=32)
    codes = tokenizer.encode(images)
    with torch.no_grad():
        eight_bits = [to_uint8(x).double() for x in (images, tokenizer.decode(codes))]
    psnr = 10 * torch.log10(255**2 / (eight_bits[0] - eight_bits[1]).square().mean((1, 2, 3)))
    for i, stem in enumerate(stems):
        stored = np.load(tmp_path / "out" / f"{stem}.npz")
        np.testing.assert_array_equal(stored["codes"], codes[i].numpy())
        assert list(stored["factors"]) == [factor.name for factor in tokenizer.config.factors]
        assert lines[i + 1].startswith(str(tmp_path / "out" / f"{stem}.png"))
        assert float(lines[i + 1].split("PSNR ")[1].split(" dB")[0]) == pytest.approx(psnr[i].item(), abs=0.006)
        columns = 2 + (tokenizer.num_factors if tokenizer.num_factors > 1 else 0)
        with Image.open(tmp_path / "out" / f"{stem}.png") as picture:
            assert picture.size == (columns * 34 + 2, 36)
        assert len(lines[0].split(", ")) == columns
    assert lines[-1] == str(tmp_path / "out")


def test_the_exported_tokenizer_makes_the_same_codes(run: Path, pictures: Path, tmp_path: Path) -> None:
    images = fqgan.load_images(sorted(pictures.iterdir()), size=32)
    tokenizer = fqgan.load_tokenizer(run)
    exported = fqgan.load_tokenizer(fqgan.save_tokenizer(tokenizer, tmp_path / "exported"))
    codes = tokenizer.encode(images)
    assert torch.equal(exported.encode(images), codes)
    assert torch.equal(exported.decode(codes), tokenizer.decode(codes))
    assert len(codes[:, 0].unique()) > 1, "more than one code, or equality says nothing"
    raw = fqgan.load_tokenizer(run, weights="raw").state_dict()
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in tokenizer.state_dict().items()), "auto is the EMA"


def test_evaluate_writes_and_prints_the_numbers(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--data", str(pictures), "--workers", "0", "--limit", "6"]
    text = output(capsys, "evaluate", "tokenizer", str(run), *options)
    assert text.splitlines()[-1] == str(run / "eval.json")
    numbers = json.loads((run / "eval.json").read_text())
    assert {"subject", "checkpoint", "data", "images", "unreadable", "metrics", "factors", "protocol"} < set(numbers)
    assert {"psnr", "psnr_pooled", "ssim", "perceptual", "frechet", "kernel_distance", "bits_per_position"} < set(
        numbers["metrics"]
    )
    assert (numbers["checkpoint"], numbers["data"]) == (str(run), str(pictures))
    assert (numbers["protocol"]["size"], numbers["images"], numbers["unreadable"]) == (32, 6, 0)
    names = [factor.name for factor in schema.load(TokenizerRunConfig, run / "config.json").model.factors]
    assert list(numbers["factors"]) == names
    assert {"usage", "perplexity", "bits"} <= set(numbers["factors"]["visual"])
    assert f"{numbers['metrics']['psnr']:.2f} dB" in text


@pytest.mark.parametrize("run", [1], indirect=True)
def test_evaluate_takes_one_checkpoint_and_an_output_file(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint, out = run / "checkpoints" / "step-00000001", tmp_path / "new" / "one.json"
    argv = ["evaluate", "tokenizer", str(checkpoint), "--data", str(pictures), "--workers", "0", "--out", str(out)]
    assert output(capsys, *argv).splitlines()[-1] == str(out)
    assert json.loads(out.read_text())["checkpoint"] == str(checkpoint)
