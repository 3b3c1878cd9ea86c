"""The study of understanding: a projector between frozen models, captions, and a table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_models import QUICK, captioned, captions, features, language, phi
from processes import start, wait_for
from safetensors.torch import load_file

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import OptimizerConfig, ProjectorConfig, ProjectorRunConfig, TrainConfig, UnderstandingSettings
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.language import LanguageModel, load_language_model
from fqgan.lab.understanding.projector import Projector, mean_loss, train_projector, write_captions
from fqgan.lab.understanding.readings import orderings_of, readings_of
from fqgan.lab.understanding.scores import score
from fqgan.lab.understanding.study import study_understanding
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["captioned", "captions", "language", "phi"]  # fixtures

Refused = Callable[..., str]


# --- the projector


def test_only_the_projector_trains(language: LanguageModel, captions: CaptionSet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in language.network.state_dict().items()}
    torch.manual_seed(0)
    fresh = Projector("mlp", 5, 32).state_dict()
    config = ProjectorRunConfig(optimizer=OptimizerConfig(lr=1e-2), train=QUICK)
    projector = train_projector(config, language, features(24), captions, {}, tmp_path / "run")
    after = language.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in language.network.parameters())
    assert not any(torch.equal(value, fresh[name]) for name, value in projector.state_dict().items())
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "projector.safetensors")
    assert saved.keys() == projector.state_dict().keys()


def test_a_frozen_model_in_bf16_trains_a_projector_in_float32(phi: Path, captions: CaptionSet, tmp_path: Path) -> None:
    language = load_language_model(phi, "<image>\n", precision="bf16")
    config = ProjectorRunConfig(train=TrainConfig(**{**QUICK.__dict__, "precision": "bf16"}))
    projector = train_projector(config, language, features(24), captions, {}, tmp_path / "run")
    assert next(language.network.parameters()).dtype == torch.bfloat16
    assert next(projector.parameters()).dtype == torch.float32
    written = write_captions(projector, language, features(3), batch=2, beams=1, tokens=4)
    assert [len(part) for part in written] == [2, 1]


def test_a_projector_is_two_layers_or_one() -> None:
    names = [type(layer).__name__ for layer in Projector("mlp", 5, 8).layers]
    assert names == ["Linear", "GELU", "Linear"]
    assert [type(layer).__name__ for layer in Projector("linear", 5, 8).layers] == ["Linear"]
    assert Projector("mlp", 5, 8)(torch.zeros(2, 3, 5)).shape == (2, 3, 8)


def test_captions_and_losses_do_not_depend_on_the_batch(language: LanguageModel, in_float64: None) -> None:
    language.network.double()
    projector, given = Projector("mlp", 5, 32).eval(), features(7)
    projector.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    texts = ["a red square", "a square", "grey", "a", "there is a blue square on grey", "a a a", "red"]
    options = {"beams": 1, "tokens": 6}
    one, several = (
        [text for part in write_captions(projector, language, given, batch=b, **options) for text in part]
        for b in (1, 3)
    )
    assert one == several and len(one) == 7
    losses = [mean_loss(projector, language, given, texts, batch) for batch in (1, 3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


# --- the study


@pytest.fixture
def study(exported: Path, phi: Path, captioned: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a tiny study."""

    def call(*rest: object, lm: object = phi, data: object = captioned, out: str = "out") -> list[str]:
        argv = ["study", "understanding", exported, "--lm", lm, "--data", data, "--out", tmp_path / out]
        argv += ["--workers", 0, "--network-size", 32, "--tokens", 6, "--words", "python", "--train.device", "cpu"]
        argv += ["--train.batch", 8, "--train.steps", 6, "--train.checkpoint-every", 2, "--train.precision", "float32"]
        return [str(argument) for argument in [*argv, *rest]]

    return call


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def weights(out: Path, row: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(out / "rows" / row / f"seed-{seed}" / "checkpoints" / "step-00000006" / "projector.safetensors")


def test_a_saved_phi_is_loaded_trained_and_writes_the_table(
    study: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(study("--seeds", 2, "--beams", 2, "--prompt", r"<image>\n")) == 0
    rows = table(out)
    feature = [(row["feature"], row["sub_codebook"], row["paper_cider"]) for row in rows if row["seed"] == "0"]
    assert feature == [
        ("None (blind)", "–", ""),
        ("Continuous", "Codebook 1 (visual)", "3.67"),
        ("Continuous", "Codebook 2 (semantic)", "7.15"),
        ("Continuous", "Both", "10.28"),
        ("Discrete", "Codebook 1 (visual)", "2.22"),
        ("Discrete", "Codebook 2 (semantic)", "7.4"),
        ("Discrete", "Both", "7.37"),
        ("EfficientNet-Lite0", "–", ""),
    ]
    assert [row["seed"] for row in rows] == ["0", "1"] * 8
    measured = json.loads((out / "rows" / "discrete-0+1" / "seed-1" / "measured.json").read_text())
    texts = [text for text, _ in measured["captions"]]
    tests = open_captions(str(Path(study()[6])), "test")
    again, _ = score(texts, tests.captions, "python")
    assert {name: measured["metrics"][name] for name in again} == pytest.approx(again)
    assert float(rows[13]["cider"]) == pytest.approx(100 * again["cider"])
    assert not torch.equal(weights(out, "network")["layers.0.weight"], weights(out, "network", 1)["layers.0.weight"])
    text = (out / "table.md").read_text()
    assert "EfficientNet-Lite0 over None (blind)" in text and "Continuous, Both over Discrete, Both" in text
    page = (out / "captions.html").read_text()
    assert (
        page.count("data:image/jpeg") == 8
        and "row 5 of test.parquet" in page
        and "there is a green square" in page
        and "http" not in page
    )
    # finished rows are reused; what is missing is done again, to the same numbers
    first = (out / "table.csv").read_bytes()
    shutil.rmtree(out / "rows" / "blind" / "seed-1")
    stamp = (out / "rows" / "network" / "seed-0" / "measured.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(study("--seeds", 2, "--beams", 2)) == 0
    told = capsys.readouterr().out
    assert told.count("measured already") == 15 and told.count(": training") == 1
    assert (out / "table.csv").read_bytes() == first
    assert (out / "rows" / "network" / "seed-0" / "measured.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_killed_study_goes_on_exactly(study: Callable[..., list[str]], tmp_path: Path) -> None:
    chosen = ("--seeds", 1, "--only", "continuous-1", "blind")
    process = start(study(*chosen, out="killed"))
    wait_for(tmp_path / "killed" / "rows" / "blind" / "seed-0" / "checkpoints" / "step-00000002", process)
    process.kill()
    process.communicate()
    assert main(study(*chosen, out="killed")) == 0
    assert main(study(*chosen, out="whole")) == 0
    for row in ("continuous-1", "blind"):
        one, two = weights(tmp_path / "killed", row), weights(tmp_path / "whole", row)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "killed" / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()


@pytest.mark.slow
def test_what_is_read_of_a_picture_is_in_its_caption(study: Callable[..., list[str]], tmp_path: Path) -> None:
    """With a small language model trained on the captions: the colour of a square, which a blind row cannot know."""
    small = ["--language.model.width", 32, "--language.model.heads", 2, "--language.model.min-count", 1]
    small += ["--language.train.steps", 150, "--language.train.batch", 8, "--language.optimizer.lr", 0.01]
    small += ["--language.model.dropout", 0]
    small += ["--train.steps", 150, "--train.checkpoint-every", 150, "--optimizer.lr", 0.01, "--seeds", 1]
    assert main(study(*small, "--only", "blind", "continuous-0+1", lm="tiny")) == 0
    rows = {row["row"]: row for row in table(tmp_path / "out")}
    assert float(rows["continuous-0+1"]["cider"]) > 2 * float(rows["blind"]["cider"])
    assert float(rows["continuous-0+1"]["loss"]) < float(rows["blind"]["loss"]) - 0.1


def test_rows_and_orderings_follow_the_factors(tokenizer: FactorizedTokenizer) -> None:
    rows = readings_of(tokenizer.config, ProjectorConfig(), [(0, 1), (1,)])
    names = ["blind", "continuous-0+1", "continuous-1", "discrete-0+1", "discrete-1", "network"]
    assert [row.name for row in rows] == names
    pairs = {(each.better, each.worse) for each in orderings_of(rows)}
    assert ("continuous-0+1", "continuous-1") in pairs and ("continuous-1", "discrete-1") in pairs
    assert ("network", "blind") in pairs and ("discrete-1", "discrete-0+1") not in pairs
    with pytest.raises(UserError, match="--factors names factor 2, but the tokenizer has factors 0 to 1"):
        readings_of(tokenizer.config, ProjectorConfig(), [(2,)])


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(UserError, match=r"hold no word: '\. / !'"):
        score(["a dog"], [[".", "!"]], "python")
    assert score(["a dog"], [[".", "a dog"]], "python")[0]["rouge"] == pytest.approx(1)


def test_mistakes_are_told_in_one_line(
    study: Callable[..., list[str]], refused: Refused, captioned: Path, pictures: Path, exported: Path, tmp_path: Path
) -> None:
    assert "--lm org/none is not in the local cache of the hub" in refused(*study(lm="org/none"))
    assert "--lm ./none is no folder" in refused(*study(lm="./none"))
    assert "needs config.json and model.safetensors" in refused(*study(lm=pictures))
    assert "has no captions" in refused(*study(data=pictures))
    assert "--test is missing" in refused(*study(data=captioned / "train.parquet"))
    assert "unknown row 'blnd'; did you mean 'blind'?" in refused(*study("--only", "blnd"))
    assert "--factors names factor 7" in refused(*study("--factors", "0+7"))
    assert "--factors 0-1: name subsets" in refused(*study("--factors", "0-1"))
    assert "the prompt must hold <image> once" in refused(*study("--prompt", "hello"))
    assert "--seeds must be at least 1" in refused(*study("--seeds", 0))
    for option, text in (("--lm", "--lm is missing"), ("--data", "--data is missing"), ("--out", "--out is missing")):
        argv = study()
        del argv[(at := argv.index(option)) : at + 2]
        assert text in refused(*argv)
    assert "name a tokenizer first" in refused("study", "understanding", "--lm", "tiny")
    assert not (tmp_path / "out").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(study()[4], damaged)
    (damaged / "model.safetensors").write_bytes(b"no")
    assert "cannot be loaded as a causal language model" in refused(*study(lm=damaged))
    (damaged / "model.safetensors").write_bytes((Path(study()[4]) / "model.safetensors").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (damaged / name).unlink()
    assert "has no tokenizer: it needs tokenizer.json" in refused(*study("--only", "blind", lm=damaged))


def test_other_settings_in_the_same_folder_are_refused(study: Callable[..., list[str]], refused: Refused) -> None:
    chosen = ("--seeds", 1, "--only", "blind")
    assert main(study(*chosen)) == 0
    assert "was begun with other settings (train.steps: 6 -> 8)" in refused(*study(*chosen, "--train.steps", 8))
    assert "(model.projector: 'mlp' -> 'linear')" in refused(*study(*chosen, "--projector", "linear"))
    assert "(train-continuous.size: 32 -> 16)" in refused(*study(*chosen, "--size", 16))
    other = ("--test", Path(study()[6]) / "train.parquet")
    assert "(test-continuous.content.images: 8 -> 24" in refused(*study(*chosen, *other))


def test_the_small_language_model_keeps_its_settings(study: Callable[..., list[str]], refused: Refused) -> None:
    small = ["--language.model.width", 32, "--language.model.heads", 2, "--language.train.steps", 2]
    chosen = ["--seeds", 1, "--only", "blind", *small]
    assert main(study(*chosen, lm="tiny")) == 0
    line = refused(*study(*chosen, "--language.optimizer.lr", 0.1, lm="tiny"))
    assert "lm was begun with other settings (optimizer.lr: 0.002 -> 0.1)" in line


def test_the_study_is_a_function_that_returns_files_and_numbers(
    exported: Path, phi: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = UnderstandingSettings(
        *(str(exported), str(phi), str(captioned)),
        out=tmp_path / "out",
        seeds=1,
        only=("blind", "discrete-0"),
        tokens=4,
        words="python",
        workers=0,
        train=QUICK,
    )
    result = study_understanding(settings)
    assert [file.name for file in result.files] == ["table.md", "table.csv", "table.tex", "captions.html"]
    assert all(file.parent == tmp_path / "out" and file.exists() for file in result.files)
    assert {name for name, _ in result.numbers} == {"blind", "discrete-0"}
    row = table(tmp_path / "out")[1]
    assert result.numbers["discrete-0", 0] == {key: float(row[key]) for key in ("cider", "bleu4", "rouge", "loss")}
    assert study_understanding(settings) == result
    with pytest.raises(UserError, match="--seeds must be at least 1"):
        study_understanding(replace(settings, seeds=0))
