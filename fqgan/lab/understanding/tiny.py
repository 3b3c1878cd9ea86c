"""`--lm tiny`: a small Phi whose tokens are words, trained on the training captions alone.

A document is all captions of one picture in random order, each on a line. So the model learns that what it has read of
a picture tells what the next caption will say, which is what a projector then makes use of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fqgan.base.files import making_folder, write_text
from fqgan.config import LanguageConfig, LanguageRunConfig
from fqgan.data.order import SampleStream, sample_rng
from fqgan.engine.distributed import World
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import RunFolder
from fqgan.engine.session import session, train
from fqgan.engine.sizes import share_of
from fqgan.engine.task import Phase, Task
from fqgan.lab.understanding import EXTRA
from fqgan.lab.understanding.captions import CaptionSet
from fqgan.nets.transformers_teacher import quiet
from fqgan.nets.weights import require

NAME = "language"
_BEGIN, _END, _UNKNOWN, _PADDING = "<s>", "\n", "<unk>", "<pad>"
_PUNCTUATION = r"""[.,;:!?"“”()\[\]]"""
_LONGEST = 1024  # tokens of a document
_IGNORED = -100
_HELD_OUT = 20  # one picture in so many validates
_ORDER_TAG = 0x0CA9


def build_tokenizer(captions: CaptionSet, min_count: int) -> Any:
    """A fast tokenizer of transformers whose tokens are the words of captions: small letters, cut at blanks, without
    punctuation marks. Words that occur less than `min_count` times are `<unk>`; a line feed ends a caption."""
    require("transformers", EXTRA)
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(_PUNCTUATION), " ")])
    counts = Counter(
        word for several in captions.captions for text in several for word in normalizer.normalize_str(text).split()
    )
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    words = [_PADDING, _UNKNOWN, _BEGIN, _END, *kept]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=_UNKNOWN))
    model.normalizer = normalizer
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in words[:4]])
    model.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, words.index(_BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=_BEGIN, eos_token=_END, unk_token=_UNKNOWN, pad_token=_PADDING
    )


def build_network(config: LanguageConfig, tokenizer: Any) -> nn.Module:
    """A Phi with random weights."""
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            max_position_embeddings=2048,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class LanguageTask(Task):
    """Next words of documents; validation on the documents of some pictures that training leaves out."""

    def __init__(self, config: LanguageRunConfig, world: World, captions: CaptionSet):
        self.config, self.world, self.captions = config, world, captions
        self.tokenizer = build_tokenizer(captions, config.model.min_count)
        held_out = range(_HELD_OUT - 1, len(captions), _HELD_OUT)
        self.held_out = list(held_out)
        self.pictures = [i for i in range(len(captions)) if i not in held_out]
        self.lines = [
            [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenizer(list(s), add_special_tokens=False).input_ids]
            for s in captions.captions
        ]
        torch.manual_seed(config.train.seed)
        network = build_network(config.model, self.tokenizer).to(world.device)
        self.phases = [Phase(NAME, network, make_optimizer(network, config.optimizer), self._loss)]

    def document(self, epoch: int, picture: int) -> list[int]:
        """A picture's captions, in an order that depends on the epoch."""
        lines = self.lines[picture]
        order = sample_rng(self.config.train.seed, (epoch, picture), _ORDER_TAG).permutation(len(lines))
        ids = [self.tokenizer.bos_token_id, *(token for i in order for token in lines[i])]
        return ids[:_LONGEST]

    def _batch(self, documents: list[list[int]]) -> Tensor:
        longest = max(map(len, documents))
        rows = [[*ids, *[_IGNORED] * (longest - len(ids))] for ids in documents]
        return torch.tensor(rows, device=self.world.device)

    def batches(self, start_step: int) -> Iterator[Tensor]:
        """Tokens (b, longest) of a rank's documents, from a step on; -100 stands after the end of shorter ones."""
        train = self.config.train
        stream = SampleStream([len(self.pictures)], train.seed, 1)
        for keys in stream.batches(**share_of(train, self.world, start_step)):
            yield self._batch([self.document(epoch, self.pictures[index]) for epoch, index in keys])

    def _loss(self, network: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), ignore_index=_IGNORED)
        return loss, {"loss": loss.detach()}

    def data_fingerprint(self) -> dict[str, Any]:
        """Of the captions and their pictures' names."""
        return self.captions.data_fingerprint()

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Cross-entropy in nats a token of the pictures that are left out; nothing where there are none."""
        documents = [self.document(0, picture) for picture in self.held_out]
        size = self.config.train.batch
        parts = [documents[i : i + size] for i in range(0, len(documents), size)]
        # parts of unequal size and length: weighted by their tokens
        sums = [(self._loss(model, self._batch(part))[0].item(), sum(map(len, part)) - len(part)) for part in parts]
        count = sum(tokens for _, tokens in sums)
        return {"loss": sum(loss * tokens for loss, tokens in sums) / count} if count else {}

    def picture(self, model: nn.Module, path: Path) -> None:
        """There is none of a language model."""


def train_language_model(config: LanguageRunConfig, captions: CaptionSet, run: Path) -> Path:
    """Train, or go on training, the run in folder `run`; returns the folder of the finished model, as transformers
    saves one."""
    config.check()
    folder = run / "model"
    with session(config.train) as world:
        task = LanguageTask(config, world, captions)
        train(task, RunFolder(run, config), world, len(task.pictures))
        if world.is_main and not folder.exists():
            with making_folder(folder) as temporary, quiet():
                task.phases[0].module.save_pretrained(temporary)  # pyright: ignore[reportCallIssue]
                task.tokenizer.save_pretrained(temporary)
                write_text(temporary / "captions.json", json.dumps(captions.data_fingerprint(), indent=2) + "\n")
    return folder
