"""What the study of understanding trains a projector between: features of pictures, and language models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import QUICK, SMALL, captioned, captions, features, language, phi, vectors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from fqgan.base.errors import UserError
from fqgan.base.files import lock
from fqgan.config import LanguageRunConfig, OptimizerConfig, ProjectorConfig, ProjectorRunConfig, TrainConfig
from fqgan.data.loader import load_images
from fqgan.lab.understanding import banks
from fqgan.lab.understanding.banks import BankFolder, MapBank, MapReader, scaled_features, tokenizer_reader
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.language import LanguageModel, load_language_model
from fqgan.lab.understanding.projector import train_projector
from fqgan.lab.understanding.tiny import build_network, build_tokenizer, train_language_model
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["captioned", "captions", "language", "phi"]  # fixtures


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
