"""The study of understanding: frozen models, a projector, captions, and a table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import write_captioned
from processes import start, wait_for
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from fqgan.base.errors import UserError
from fqgan.base.files import lock
from fqgan.cli import main
from fqgan.config import (
    LanguageConfig,
    LanguageRunConfig,
    OptimizerConfig,
    ProjectorConfig,
    ProjectorRunConfig,
    TrainConfig,
    UnderstandingSettings,
)
from fqgan.data.loader import load_images
from fqgan.lab.understanding import banks
from fqgan.lab.understanding.banks import (
    BankFolder,
    MapBank,
    MapReader,
    ScaledFeatures,
    scaled_features,
    tokenizer_reader,
)
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.language import LanguageModel, load_language_model
from fqgan.lab.understanding.projector import Projector, mean_loss, train_projector, write_captions
from fqgan.lab.understanding.readings import orderings_of, readings_of
from fqgan.lab.understanding.scores import score
from fqgan.lab.understanding.study import study_understanding
from fqgan.lab.understanding.tiny import build_network, build_tokenizer, train_language_model
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]
QUICK = TrainConfig(
    batch=8,
    steps=6,
    precision="float32",
    device="cpu",
    log_every=2,
    image_every=0,
    validate_every=0,
    checkpoint_every=2,
)
SMALL = LanguageConfig(width=32, depth=2, heads=2, min_count=1)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("captioned") / "set", train=24, test=8)


@pytest.fixture(scope="module")
def captions(captioned: Path) -> CaptionSet:
    return open_captions(str(captioned))


@pytest.fixture(scope="module")
def phi(captions: CaptionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Phi of some thousand weights and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("phi")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(captions, 1)
    network = build_network(SMALL, tokenizer)
    with torch.no_grad():  # far enough from each other that rounding decides nothing
        network.get_output_embeddings().weight.normal_(0, 1)  # pyright: ignore
    network.save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def language(phi: Path) -> LanguageModel:
    return load_language_model(phi, "<image>\n")


def vectors(count: int, positions: int = 6) -> torch.Tensor:
    return torch.randn(count, positions, 32, generator=torch.Generator().manual_seed(3))


def features(count: int, channels: int = 5, positions: int = 6) -> ScaledFeatures:
    bank = MapBank(np.random.default_rng(1).normal(2, 3, (count, positions, channels)).astype(np.float32), (2, 3))
    return scaled_features(ProjectorConfig(), bank, bank)


# --- features


def fill(folder: BankFolder, reader: MapReader, captions: CaptionSet) -> None:
    """A bank of some captions' pictures, four at a time."""
    folder.fill("train", reader, captions.source, captions.data_fingerprint(), device="cpu", batch=4, workers=0)


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_a_bank_holds_the_tokenizers_maps_by_position(
    kind: str, tokenizer: FactorizedTokenizer, captions: CaptionSet, tmp_path: Path
) -> None:
    folder = BankFolder(tmp_path / "features")
    fill(folder, tokenizer_reader(kind, tokenizer), captions)  # pyright: ignore
    bank = folder.open("train")
    image = captions.source.read(7)[0]
    image.save(tmp_path / "7.png")
    images = load_images(tmp_path / "7.png", 32)
    maps = tokenizer.features(images) if kind == "continuous" else tokenizer.embed(tokenizer.encode(images))
    assert bank.values.shape == (24, 64, 8) and bank.dims == (4, 4)
    assert bank.values[7, 10, 4:] == pytest.approx(maps[1][0, :, 1, 2].detach().numpy(), abs=1e-5)
    assert sorted(path.name for path in folder.folder.iterdir()) == ["train.json", "train.npy"]


def test_a_bank_of_other_settings_or_pictures_is_refused_with_what_differs(
    tokenizer: FactorizedTokenizer, captions: CaptionSet, captioned: Path, tmp_path: Path
) -> None:
    folder = BankFolder(tmp_path / "features")
    fill(folder, tokenizer_reader("discrete", tokenizer), captions)
    before = (folder.folder / "train.npy").read_bytes()
    with pytest.raises(
        UserError, match=r"begun with other settings \(train.size: 32 -> 16\): restore them or use a new"
    ):
        fill(folder, tokenizer_reader("discrete", tokenizer, 16), captions)
    with pytest.raises(UserError, match=r"train.content.images: 24 -> 8"):
        fill(folder, tokenizer_reader("discrete", tokenizer), open_captions(str(captioned), "test"))
    fill(folder, tokenizer_reader("discrete", tokenizer), captions)
    assert (folder.folder / "train.npy").read_bytes() == before


def test_an_interrupted_bank_goes_on_where_it_was(
    tokenizer: FactorizedTokenizer, captions: CaptionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banks, "SAVED_EVERY", 8)
    reader = tokenizer_reader("continuous", tokenizer)
    seen: list[int] = []

    def until(limit: int) -> MapReader:
        def read(images: torch.Tensor) -> list[torch.Tensor]:
            seen.append(len(images))
            if sum(seen) > limit:
                raise KeyboardInterrupt
            return reader.read(images)

        return replace(reader, read=read)

    folder, whole = BankFolder(tmp_path / "features"), BankFolder(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fill(folder, until(12), captions)
    with pytest.raises(UserError, match=r"train.small: 'enlarge' -> 'refuse'"):
        fill(folder, tokenizer_reader("continuous", tokenizer, small="refuse"), captions)
    seen.clear()
    fill(folder, until(24), captions)
    assert seen == [4] * 4  # the first eight were saved
    fill(whole, reader, captions)
    for name in ("train.npy", "train.json"):
        assert (folder.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_bank_of_which_nothing_is_saved_begins_anew_with_other_settings(
    tokenizer: FactorizedTokenizer, captions: CaptionSet, tmp_path: Path
) -> None:
    def read(images: torch.Tensor) -> list[torch.Tensor]:
        if (folder.folder / "train.part.npy").exists():
            raise KeyboardInterrupt
        return reader.read(images)

    folder, reader = BankFolder(tmp_path / "features"), tokenizer_reader("continuous", tokenizer)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, replace(reader, read=read), captions)
    fill(folder, tokenizer_reader("continuous", tokenizer, 16), captions)
    assert folder.open("train").values.shape == (24, 16, 8)


def test_a_bank_is_made_by_one_process_at_a_time(
    tokenizer: FactorizedTokenizer, captions: CaptionSet, tmp_path: Path
) -> None:
    folder, reader = BankFolder(tmp_path / "features"), tokenizer_reader("continuous", tokenizer)
    folder.folder.mkdir()
    with lock(folder.folder / ".lock"), pytest.raises(UserError, match="in use by another process"):
        fill(folder, reader, captions)


def test_features_are_some_channels_scaled_on_the_training_pictures() -> None:
    trained = MapBank(np.random.default_rng(0).normal(5, 4, (300, 6, 5)).astype(np.float32), (2, 3))
    test = MapBank(trained.values[:10] + 1, trained.dims)
    found = scaled_features(ProjectorConfig(factors=(1,)), trained, trained).take(range(300))
    assert found.shape == (300, 6, 3)
    assert found.mean((0, 1)).abs().max() < 1e-4 and (found.std((0, 1)) - 1).abs().max() < 1e-2
    moved = scaled_features(ProjectorConfig(factors=(1,)), test, trained).take([4])
    own = trained.values[..., 2:]
    assert moved[0].numpy() == pytest.approx((own[4] + 1 - own.mean((0, 1))) / own.std((0, 1)), abs=1e-4)
    both = scaled_features(ProjectorConfig(factors=(0, 1)), trained, trained).take([3])
    assert torch.equal(both[..., 2:], scaled_features(ProjectorConfig(factors=(1,)), trained, trained).take([3]))
    blind = scaled_features(ProjectorConfig("blind"), trained, trained).take([3, 4])
    assert blind.shape == (2, 6, 5) and not blind.any()
    with pytest.raises(UserError, match="there is no factor 2: the tokenizer has factors 0 to 1"):
        trained.channels([2])


# --- the language model


def test_losses_are_those_of_one_caption_at_a_time_over_the_whole_sequence(language: LanguageModel) -> None:
    """Independent of padding and of the number of logits that are computed."""
    prefix = vectors(2)
    texts = ["a red square", "there is a blue square on grey"]
    sums, counts = language.losses(prefix, language.caption_tokens(texts))
    table = language.network.get_input_embeddings()  # pyright: ignore
    for i, text in enumerate(texts):
        ids = torch.tensor(language.tokenizer(f"{text}\n", add_special_tokens=False).input_ids)
        begin, line = torch.tensor([2]), torch.tensor([3])
        inputs = torch.cat([table(begin), prefix[i], table(line), table(ids)])[None]  # pyright: ignore
        logits = language.network(inputs_embeds=inputs).logits[0]
        expected = F.cross_entropy(logits[7:-1], ids, reduction="sum")  # <s>, six positions, line feed
        assert counts[i] == len(ids)
        assert sums[i].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_captions_are_those_of_one_picture_at_a_time(language: LanguageModel, beams: int) -> None:
    prefix = vectors(7)
    batched = language.write(prefix, beams, 12)
    assert batched == [language.write(row[None], beams, 12)[0] for row in prefix]
    assert len(set(batched)) > 1


def test_greedy_captions_are_the_likeliest_words_without_a_cache(language: LanguageModel) -> None:
    table = language.network.get_input_embeddings()
    for prefix in vectors(4):
        inputs = language.prompts(prefix[None])
        ids: list[int] = []
        while len(ids) < 8 and language.ends[0] not in ids:
            logits = language.network(inputs_embeds=inputs, use_cache=False).logits[0, -1]  # pyright: ignore
            logits[language.suppressed] = -torch.inf
            ids.append(int(logits.argmax()))
            inputs = torch.cat([inputs, table(torch.tensor([[ids[-1]]]))], 1)  # pyright: ignore
        text = language.tokenizer.decode([i for i in ids if i not in language.ends])
        assert language.write(prefix[None], tokens=8) == [text.strip()]


def test_tokens_of_the_small_model_are_the_words_of_the_training_captions(captions: CaptionSet) -> None:
    tokenizer = build_tokenizer(captions, 1)
    words = {"a", "there", "is", "square", "on", "grey", "red", "green", "blue", "white"}
    assert set(tokenizer.get_vocab()) == {*words, "<pad>", "<unk>", "<s>", "\n"}
    ids = tokenizer("A RED square,\nthere is a dog.").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a", "red", "square", "\n", "there", "is", "a", "<unk>"]
    frequent = build_tokenizer(captions, 13)  # each colour comes 6 times in 24 pictures, twice
    assert "red" not in frequent.get_vocab() and "square" in frequent.get_vocab()


def test_the_small_model_learns_what_captions_say(captions: CaptionSet, tmp_path: Path) -> None:
    train = TrainConfig(**{**QUICK.__dict__, "steps": 60, "log_every": 60, "checkpoint_every": 60})
    config = LanguageRunConfig(SMALL, OptimizerConfig(lr=1e-2), train)
    folder = train_language_model(config, captions, tmp_path / "lm")
    language = load_language_model(folder, "<image>\n")
    tokens = language.caption_tokens(["a red square on grey", "a grey red on a"])
    sums, _ = language.losses(torch.zeros(2, 1, 32), tokens)
    assert sums[0] < sums[1] / 2
    assert train_language_model(config, captions, tmp_path / "lm") == folder


def test_a_phi_with_pieces_of_words_for_tokens_as_the_real_one(captions: CaptionSet, tmp_path: Path) -> None:
    """Byte-level pairs, one special token for begin, end and unknown, no padding; a prompt with words."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    pieces.train_from_iterator([text for several in captions.captions for text in several], trainer)
    marks = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **marks)
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    language = load_language_model(tmp_path / "phi", "Look: <image>\nDescribe it.\n")
    assert tokenizer.decode(language.before) == "Look: " and tokenizer.decode(language.after) == "\nDescribe it.\n"
    assert [tokenizer.decode([end]) for end in language.ends] == ["\n", "<|endoftext|>"]
    assert language.suppressed == []
    tokens = language.caption_tokens(["a red square", "Grey , again"])
    assert [tokenizer.decode(ids) for ids in tokens] == ["a red square\n", "Grey , again\n"]
    train_projector(ProjectorRunConfig(train=QUICK), language, features(24), captions, {}, tmp_path / "run")
    batched = language.write(vectors(5), tokens=6)
    assert batched == [language.write(row[None], tokens=6)[0] for row in vectors(5)]


def test_a_language_model_without_an_end_is_refused(captions: CaptionSet) -> None:
    tokenizer = build_tokenizer(captions, 1)
    network = build_network(SMALL, tokenizer)
    tokenizer.eos_token = None

    class Blank:
        eos_token_id = unk_token_id = bos_token_id = pad_token_id = None

        def __call__(self, text: str, **options: object) -> object:
            return type("Encoded", (), {"input_ids": [1]})

        def decode(self, ids: list[int]) -> str:
            return "a"

    with pytest.raises(UserError, match="neither a token for a line feed nor one for the end"):
        LanguageModel(network, Blank(), "<image>\n")


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
