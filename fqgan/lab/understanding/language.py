"""A frozen causal language model of transformers that reads vectors and writes captions."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.files import file_sha256
from fqgan.config import IMAGE
from fqgan.lab.understanding import EXTRA
from fqgan.nets.transformers_teacher import quiet
from fqgan.nets.weights import WEIGHTS, hub_folder, require, weights_in

# what a tokenizer may consist of, and where generation settings are
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
# without one of them transformers makes up an empty tokenizer
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_IGNORED = -100


class LanguageModel:
    """A causal language model, its tokenizer, and the form of its prompts.

    A prompt's text stands around the vectors of a picture; the caption and an end follow: a line feed where that is a
    token of its own, as in LLaVA's first stage, else the model's end of text.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, prompt: str, name: str = "the language model"):
        self.network = network.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        before, after = prompt.split(IMAGE)
        self.before: list[int] = tokenizer(before).input_ids  # with the mark of a text's beginning, where there is one
        self.after: list[int] = self._ids(after) if after else []
        line = self._ids("a\n")[-1:]
        ends = [*(line if tokenizer.decode(line) == "\n" else []), tokenizer.eos_token_id]
        self.ends: list[int] = list(dict.fromkeys(end for end in ends if end is not None))
        if not self.ends:
            raise UserError(f"{name} has neither a token for a line feed nor one for the end of a text")
        known = {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id} - {None, *self.ends}
        self.suppressed: list[int] = sorted(known)
        """Tokens that no caption has: unknown words, beginnings, padding."""
        self._limits_logits = "logits_to_keep" in inspect.signature(network.forward).parameters

    @property
    def width(self) -> int:
        """Dimension of the vectors that it reads."""
        return self._embeddings.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.network.parameters()).device

    def caption_tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """Tokens of captions, each with the end."""
        encoded = self.tokenizer(list(captions), add_special_tokens=False).input_ids
        return [[*ids, self.ends[0]] for ids in encoded]

    def prompts(self, vectors: Tensor) -> Tensor:
        """Prompts (b, before + positions + after, width) around the vectors (b, positions, width) of pictures."""
        parts = [self._embedded(self.before), vectors, self._embedded(self.after)]
        parts = [part.expand(len(vectors), -1, -1) for part in parts]
        return torch.cat([part.to(self._embeddings.weight.dtype) for part in parts], 1)

    def losses(self, vectors: Tensor, captions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies (nats) of the captions' tokens, and their number, both of each picture (b,)."""
        longest = max(map(len, captions))
        padded = [[*tokens, *[_IGNORED] * (longest - len(tokens))] for tokens in captions]
        labels = torch.tensor(padded, device=self.device)
        prompt = self.prompts(vectors)
        # the last token is read by nobody; what stands after a caption's end is seen by nothing before it
        inputs = torch.cat([prompt, self._embeddings(labels[:, :-1].clamp(min=0)).to(prompt.dtype)], 1)
        options = {"logits_to_keep": longest} if self._limits_logits else {}
        logits = self.network(inputs_embeds=inputs, use_cache=False, **options).logits[:, -longest:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none")
        return losses.sum(1), (labels != _IGNORED).sum(1)

    @torch.no_grad()
    def write(self, vectors: Tensor, beams: int = 1, tokens: int = 32) -> list[str]:
        """Captions of pictures (b, positions, width), greedy or by beam search, with a cache of keys and values.

        All prompts of a batch are of one length, so that nothing is padded and no caption depends on its neighbours.

        Args:
            tokens: of a caption at most.
        """
        from transformers import GenerationConfig

        pad = self.tokenizer.pad_token_id
        settings = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            max_new_tokens=tokens,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0] if pad is None else pad,
            suppress_tokens=self.suppressed or None,
            use_cache=True,
        )
        prompt = self.prompts(vectors)
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        with quiet():
            ids = self.network.generate(inputs_embeds=prompt, attention_mask=mask, generation_config=settings)  # pyright: ignore[reportCallIssue]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    @property
    def _embeddings(self) -> nn.Embedding:
        return self.network.get_input_embeddings()  # pyright: ignore[reportCallIssue]

    def _embedded(self, ids: list[int]) -> Tensor:
        return self._embeddings(torch.tensor([ids], dtype=torch.long, device=self.device))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def find_language_model(spec: str) -> Path:
    """The folder of a language model: a local one, or that of a hub id, which is downloaded where it is not in the
    cache. `UserError` where there is none, or transformers is not installed."""
    require("transformers", EXTRA)
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() or not weights_in(path):
            raise UserError(f"--lm {spec} is no folder of a language model: it needs config.json and {WEIGHTS[0]}")
        return path
    if path.is_absolute() or path.exists() or spec.startswith((".", "~")):
        raise UserError(f"--lm {spec} is no folder")
    try:
        return hub_folder(spec, also=_TOKENIZER_FILES)
    except UserError as error:
        raise UserError(f"--lm {error}; give a folder on disk, or tiny, which is trained on the captions") from None


def load_language_model(
    folder: Path, prompt: str, device: torch.device | str = "cpu", precision: str = "float32"
) -> LanguageModel:
    """The causal language model in a folder of transformers, frozen. No code of the folder is run.

    Args:
        precision: of its weights, `bf16` or `float32`.

    Raises:
        UserError: it is damaged, lacks weights or a tokenizer, or is of another kind.
    """
    require("transformers", EXTRA)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, weights_only=True, output_loading_info=True, **local
            )
            network, info = loaded
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"--lm {folder} cannot be loaded as a causal language model: {in_one_line(error)}") from None
    if info["missing_keys"]:  # they would be left at random
        raise UserError(f"--lm {folder} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    if not weights_in(folder, _VOCABULARIES):
        raise UserError(f"--lm {folder} has no tokenizer: it needs {_VOCABULARIES[0]}")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:
        raise UserError(f"--lm {folder} has no tokenizer that can be loaded: {in_one_line(error)}") from None
    return LanguageModel(network.to(device), tokenizer, prompt, str(folder))


def digest_of(folder: Path) -> str:
    """sha256 in hex of a model's files: config, weights and tokenizer."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt"):
            whole.update(path.name.encode())
            whole.update(bytes.fromhex(file_sha256(path)))
    return whole.hexdigest()
