"""Studies of generators (Table 4, Fig. 8), and models under one protocol (Tables 1 and 2, Fig. 1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generators
import numpy as np
import pytest
from processes import start, wait_for
from sets import write_pictures
from stores import make_store
from studied import table

import fqgan
from fqgan.base import schema
from fqgan.cli import main
from fqgan.config import FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.engine.run import read_stats
from fqgan.lab.studies.generators import CURVES_PRESETS, HEADS_PRESETS, LARGER, curves, heads
from fqgan.lab.studies.plan import settings_of
from fqgan.lab.studies.results import MARK
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]
NETWORK = "efficientnet-lite0:stage3@32"  # 40 dimensions: a Frechet distance in 1,280 takes seconds on one core
MEASURE = ("--measure.features", NETWORK, "--measure.workers", "0", "--measure.kept", "0", "--measure.num", "6")


@pytest.fixture
def home(tokenizer: FactorizedTokenizer, tiny: TokenizerRunConfig, tmp_path: Path) -> Path:
    """Token stores of two and of three factors, real pictures, and a base config."""
    make_store(tmp_path / "dual", tokenizer, side=32)
    factors = (*tiny.model.factors, FactorConfig("third", 8, 4, adapter_depth=0))
    triple = FactorizedTokenizer(child(tiny, model={"factors": factors}).model).eval()
    make_store(tmp_path / "triple", triple, side=32)
    write_pictures(tmp_path / "real", 6, 0, size=32)
    base = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 1, "heads": 2, "mlp_multiple": 16, "dropout": 0.0},
        sampling={"top_k": (4,), "cfg_scale": (1.5,)},
        optimizer={"warmup_steps": 1, "schedule": "constant"},
        train={"batch": 4, "steps": 6, "precision": "float32", "device": "cpu", "log_every": 1, "image_every": 0},
    )
    base = child(base, train={"validate_every": 0, "checkpoint_every": 2})
    schema.save(base, tmp_path / "base.json")
    return tmp_path


def call(home: Path, name: str, *rest: object, out: str = "out") -> list[str]:
    argv = ["study", name, "cifar10-cpu", "--config", home / "base.json", "--data", home / "dual"]
    return [str(a) for a in (*argv, "--measure.data", home / "real", *MEASURE, "--out", home / out, *rest)]


@pytest.mark.slow
def test_heads_differ_in_the_head_alone_and_each_is_sampled_twice(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = call(home, "heads", "--seeds", 1)
    assert main(argv) == 0
    rows = table(home / "out")
    assert [row["line"] for row in rows] == ["linear-4", "linear-8", "mlp-4", "mlp-8", "ar-4", "ar-8"]
    assert [row["paper_gfid"] for row in rows] == ["5.19", "6.9", "5.59", "8.88", "4.37", "3.74"]
    for name in ("linear", "mlp", "ar"):
        run = home / "out/rows" / name / "seed-0"
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
        assert config["model"]["head"] == name
        assert len(list((run / "checkpoints").iterdir())) >= 1 and len(list((run / "points").iterdir())) == 1
        results = [json.loads(path.read_text()) for path in sorted((run / "measured").iterdir())]
        assert [r["protocol"]["samples"]["sampling"]["top_k"] for r in results] == [[4], [8]]
        assert all(r["protocol"]["samples"]["sampling"]["cfg_scale"] == [1.5] for r in results)
        assert results[0]["metrics"]["frechet"] != results[1]["metrics"]["frechet"]
    text = (home / "out/table.md").read_text()
    assert "AR head over k linear classifiers, top-k 8" in text
    assert '| linear | ar | `model.head` = "linear" |' in text
    capsys.readouterr()
    assert main(argv) == 0
    assert "training to" not in (printed := capsys.readouterr().out) and printed.count("is measured already") == 6
    assert table(home / "out") == rows


def test_a_killed_study_ends_with_the_same_numbers(home: Path) -> None:
    options = ("--seeds", 1, "--only", "linear")
    assert main(call(home, "heads", *options, out="whole")) == 0
    argv = call(home, "heads", *options)
    process = start(argv)
    wait_for(home / "out/rows/linear/seed-0/checkpoints/step-0000000[2-5]", process)
    process.kill()
    process.communicate()
    assert not (home / "out/table.md").exists()
    assert main(argv) == 0
    assert table(home / "out") == table(home / "whole")
    assert [line["step"] for line in read_stats(home / "out/rows/linear/seed-0")] == list(range(1, 7))


@pytest.mark.slow
def test_rows_of_ones_own_are_sampled_as_their_parent_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "wide", "parent": "ar", "label": "wider", "changes": {"model.mlp_multiple": 32}}]
    (home / "rows.json").write_text(json.dumps({"rows": rows}))
    argv = call(home, "heads", "--seeds", 1, "--only", "ar", "wide", "--rows", home / "rows.json")
    assert main([*argv, "--measure.keep-samples"]) == 0
    assert [row["line"] for row in table(home / "out")] == ["ar-4", "ar-8", "wide-4", "wide-8"]
    for row in ("ar", "wide"):
        folder = home / "out/rows" / row / "seed-0"
        results = [json.loads(path.read_text()) for path in sorted((folder / "measured").iterdir())]
        samplings = [result["protocol"]["samples"]["sampling"] for result in results]
        assert [(s["top_k"], s["cfg_scale"]) for s in samplings] == [([4], [1.5]), ([8], [1.5])]
        assert [len(list(each.glob("**/*.png"))) for each in (folder / "samples").iterdir()] == [7, 7]  # and a grid
    text = (home / "out/table.md").read_text()
    for top_k in (4, 8):
        assert f"| wider, top-k {top_k} over factorized AR head, top-k {top_k} |" in text
    # measured again only where it makes a difference; the pictures are not kept unless asked for
    capsys.readouterr()
    assert main([*argv, "--measure.workers", "1"]) == 0
    assert capsys.readouterr().out.count("is measured already") == 4
    assert not list((home / "out").glob("rows/*/seed-0/samples/*"))
    left = home / "out/rows/ar/seed-0/samples/ar-4-0123abcd"  # of a call that was killed
    left.mkdir()
    assert main([*argv, "--measure.num", "5"]) == 0 and not left.exists()


@pytest.mark.slow
def test_curves_measure_two_tokenizers_on_the_way(
    home: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    argv = call(home, "curves", "--triple", home / "triple", "--seeds", 1, "--only", "dual-base", "triple-base")
    assert main(argv) == 0
    rows = table(home / "out")
    capsys.readouterr()
    assert main([*argv, "--measure.workers", "1"]) == 0
    assert "training to" not in (printed := capsys.readouterr().out) and printed.count("is measured already") == 12
    assert table(home / "out") == rows
    assert "points/1 is of step 6, not 12" in refused(*argv, "--train.steps", 12)
    assert [row["line"] for row in rows] == [
        *(f"dual-base-{i}" for i in range(1, 7)),
        *(f"triple-base-{i}" for i in range(1, 7)),
    ]
    for row, store, scale in (("dual-base", "dual", 1.5), ("triple-base", "triple", 1.75)):
        run = home / "out/rows" / row / "seed-0"
        assert json.loads((run / "config.json").read_text())["data"] == str(home / store)
        steps = [json.loads((point / "study.json").read_text())["step"] for point in (run / "points").iterdir()]
        assert sorted(steps) == [1, 2, 3, 4, 5, 6]
        result = json.loads((run / f"measured/{row}-6--efficientnet-lite0-stage3@32.json").read_text())
        assert result["protocol"]["samples"]["sampling"]["cfg_scale"] == [scale]
    told = (home / "out/table.md").read_text()
    assert "dual over triple, smaller model" in told and "| paper: best gFID ↓ |" in told
    assert (home / "out/figure.png").read_bytes()[:4] == b"\x89PNG"


def test_the_papers_settings_are_pinned() -> None:
    paper = HEADS_PRESETS["imagenet"]
    assert (paper.model.width, paper.model.depth, paper.sampling.cfg_scale) == (1280, 36, (1.75,))
    assert [line.sampling["top_k"] for line in heads(paper).lines] == [(4096,), (8192,)] * 3
    base = CURVES_PRESETS["imagenet"]
    study = curves(base, LARGER["imagenet"], "triple")
    settings = settings_of(study, base)
    assert (settings["dual-base"].model, settings["dual-large"].model) == (
        *(get_generator("far-base").model, get_generator("far-large").model),
    )
    scales = {line.row: line.sampling["cfg_scale"] for line in study.lines}
    assert scales["dual-large"] == (2.0,) and scales["triple-base"] == (1.75,)
    assert [line.paper.get("gfid") for line in study.lines if line.fraction == 1.0] == [3.38, 3.08, 3.84, 3.09]
    assert not any(line.paper for line in study.lines if line.fraction < 1.0)


def test_options_that_make_no_sense_are_refused(home: Path, refused: Refused) -> None:
    assert "--sampling.top-k and twice that" in refused(*call(home, "heads", "--sampling.top-k", 0))
    assert "--triple is missing" in refused(*call(home, "curves"))
    argv = call(home, "heads")
    assert "--measure.data is missing" in refused(*argv[: (at := argv.index("--measure.data"))], *argv[at + 2 :])
    assert "--data is missing" in refused(*argv[: (at := argv.index("--data"))], *argv[at + 2 :])
    assert "--measure.num must be at least 1" in refused(*argv, "--measure.num", 0)
    assert "top_k 32 is impossible: factor 1 has 16 codes" in refused(*argv, "--sampling.top-k", 16)
    assert "no-such" in refused(*argv, "--measure.data", home / "no-such")
    assert "unknown features 'incepton'; did you mean 'inception'?" in refused(*argv, "--measure.features", "incepton")
    twice = ("--measure.features", "classifier:a", "--measure.classifier", "b")
    assert "two networks would be called classifier" in refused(*argv, *twice)
    assert not (home / "out").exists()
    make_store(home / "fewer", fqgan.load_tokenizer(home / "triple/tokenizer"), side=32, images=10)
    rows = ("--only", "dual-base", "triple-base", "--seeds", 1)
    triple = fqgan.load_tokenizer(home / "triple/tokenizer")
    make_store(home / "sharded", triple, side=32, shard=4)
    make_store(home / "mislabelled", triple, side=32, labels=(0, 0, 1))
    # shards are no difference; images and labels are, before anything is trained
    one = ("--only", "triple-base", "--seeds", 1)
    assert main(call(home, "curves", "--triple", home / "sharded", *one)) == 0
    line = refused(*call(home, "curves", "--triple", home / "fewer", *one))
    assert "triple-base/seed-0 was trained with what row triple-base at seed 0 does not declare (data: " in line
    other = call(home, "curves", "--triple", home / "fewer", *rows, out="other")
    assert "has other data than row dual-base (images: 12 -> 10): give both the codes of the same" in refused(*other)
    mislabelled = call(home, "curves", "--triple", home / "mislabelled", *rows, out="other")
    assert "has other data than row dual-base (other labels)" in refused(*mislabelled)
    np.savez(home / "adm.npz", mu=np.zeros(8), sigma=np.eye(8))
    argv = call(home, "curves", "--triple", home / "sharded", *rows, out="other")
    assert "8-dimensional features" in refused(*argv, "--measure.data", home / "adm.npz")
    assert not (home / "other").exists()
    assert "set --optimizer.schedule constant" in refused(
        *call(home, "curves", "--triple", home / "triple", "--optimizer.schedule", "cosine")
    )


# --- models that are there


def compared(home: Path, name: str, *rest: object) -> list[str]:
    options = ("--data", home / "real", "--features", NETWORK, "--workers", 0, "--kept", 0, "--out", home / name)
    return [str(argument) for argument in ("study", name, *rest, *options)]


def test_a_generator_without_a_tokenizer_is_told_where_to_name_one(
    home: Path, tokenizer: FactorizedTokenizer, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    fqgan.save_generator(generators.tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=3), home / "bare")
    argv = compared(home, "generators", home / "bare", "--num", 6, "--size", 16)
    assert "carries no tokenizer, as released files don't: name its own with --tokenizer" in refused(*argv)
    own = fqgan.save_tokenizer(tokenizer, home / "own")
    assert main([*argv, "--tokenizer", str(own)]) == 0
    # other pictures go to another folder
    assert main([*argv, "--tokenizer", str(own), "--num", "5"]) == 0
    assert len(list((home / "generators/samples").iterdir())) == 2
    # a tokenizer that has learned on decodes other pictures
    tokenizer.post_quant.bias.data.add_(0.3)
    fqgan.save_tokenizer(tokenizer, own)
    capsys.readouterr()
    assert main([*argv, "--tokenizer", str(own)]) == 0
    assert "measuring" in capsys.readouterr().out and len(list((home / "generators/samples").iterdir())) == 3


def _ours_and_papers(folder: Path) -> tuple[list[dict[str, str]], dict[str, dict[str, str]]]:
    """The table's rows, and the paper's by name; of several that share one the last."""
    rows = table(folder)
    mark = "paper: "
    paper = {row["model"].removeprefix(mark): row for row in rows if row["model"].startswith(mark)}
    return [row for row in rows if not row["model"].startswith(mark)], paper


def test_tokenizers_under_one_protocol(home: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    argv = compared(home, "tokenizers", home / "dual/tokenizer", home / "triple/tokenizer", "--names", "two", "three")
    argv += ["--size", "16"]
    assert main(argv) == 0
    rows, paper = _ours_and_papers(home / "tokenizers")
    assert (paper["FQGAN-Dual"]["psnr"], paper["FQGAN-Dual"]["fid/inception"]) == ("26.27", "0.32")
    assert [(row["model"], row["downsampling"], row["codes"]) for row in rows] == [
        *(("two", "4", "32 + 16"), ("three", "4", "32 + 16 + 8"))
    ]
    measured = json.loads((home / "tokenizers/measured/two--efficientnet-lite0-stage3@32.json").read_text())
    assert float(rows[0]["psnr"]) == measured["metrics"]["psnr"]
    text = (home / "tokenizers/table.md").read_text()
    # the paper's FID stands in no column of another network's distance but in its own, its PSNR beside ours
    lines = [line for line in text.splitlines() if line.startswith("|")]
    dual = next(line for line in lines if "FQGAN-Dual | 16" in line)
    assert lines[0].endswith("| paper: rFID ↓ |") and "paper: PSNR" not in lines[0] and lines[2].endswith("| – |")
    assert dual.startswith("| paper: FQGAN-Dual | 16 | 2 x 16384 | 8 | – | 22.02 |") and dual.endswith("| – | 0.94 |")
    assert (home / "tokenizers/figure.png").exists()
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out.count("is measured already") == 2
    content = json.loads((file := home / "tokenizers/measured/two--efficientnet-lite0-stage3@32.json").read_text())
    content["protocol"]["size"] = 12
    file.write_text(json.dumps(content))
    assert main(argv) == 2
    assert "was not measured as" in capsys.readouterr().err
    # what may have been their perceptual loss is marked; what would share a file or a column is refused
    assert f"perceptual distance {MARK}" in lines[0] and f"{NETWORK.replace(':', '-')} {MARK}" in lines[0]
    models = home / "dual/tokenizer", home / "triple/tokenizer"
    argv = compared(home, "tokenizers", *models, "--names", "a/b", "a-b", "--size", 16)
    assert "a/b and a-b would share a file" in refused(*argv)
    argv = compared(home, "tokenizers", *models, "--size", 16)
    argv[argv.index("--features") + 1 : argv.index("--workers")] = ["classifier:a", "classifier:b"]
    assert "two networks would be called classifier" in refused(*argv)


def test_other_weights_are_measured_anew(
    home: Path, tokenizer: FactorizedTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = compared(home, "tokenizers", fqgan.save_tokenizer(tokenizer, home / "own"), "--names", "own", "--size", 16)
    assert main(argv) == 0
    before = table(home / "tokenizers")[0]["psnr"]
    tokenizer.post_quant.bias.data.add_(0.3)
    fqgan.save_tokenizer(tokenizer, home / "own")
    capsys.readouterr()
    assert main(argv) == 0
    assert "measuring own" in capsys.readouterr().out and table(home / "tokenizers")[0]["psnr"] != before


def test_generators_under_one_protocol(home: Path, tokenizer: FactorizedTokenizer, refused: Refused) -> None:
    for head in ("ar", "linear"):
        model = generators.tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=3, head=head)
        model.carry(tokenizer)
        fqgan.save_generator(model, home / head)
    argv = compared(home, "generators", home / "ar", home / "linear", "--num", 6, "--cfg-scale", 1.5, "--size", 16)
    assert main(argv) == 0
    rows, paper = _ours_and_papers(home / "generators")
    assert (paper["FAR-Base"]["fid/inception"], paper["FAR-Base"]["recall/inception"]) == ("3.38", "0.54")
    assert [row["model"] for row in rows] == [str(home / "ar"), str(home / "linear")]
    assert rows[0]["tokenizer"] == rows[1]["tokenizer"] == tokenizer.fingerprint()[:8]
    assert rows[0][f"frechet/{NETWORK.replace(':', '-')}"] != rows[1][f"frechet/{NETWORK.replace(':', '-')}"]
    base = next(line for line in (home / "generators/table.md").read_text().splitlines() if "FAR-Base" in line)
    assert base.startswith("| paper: FAR-Base | – | 415M | – |") and base.endswith("| 3.38 | 248.26 | 0.81 | 0.54 |")
    assert "name at least one checkpoint" in refused(*compared(home, "generators"))
    assert "does not exist" in refused(*compared(home, "generators", home / "nowhere"))
