"""Table 6: what a frozen language model can tell of pictures from a tokenizer's features and codes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import make_folder
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import ProjectorConfig, ProjectorRunConfig, TokenizerConfig
from fqgan.config.data import Small
from fqgan.engine.distributed import pick_device
from fqgan.evaluation.protocol import read_result, versions, write_result
from fqgan.lab.studies.plan import WATCHING, Ordering, undeclared
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.features import (
    Features,
    Kind,
    Reader,
    features_of,
    fill,
    is_filled,
    kind_of,
    network_reader,
    open_bank,
    tokenizer_reader,
)
from fqgan.lab.understanding.language import LanguageModel, digest_of, load_language_model
from fqgan.lab.understanding.projector import mean_loss, train_projector, write_captions
from fqgan.lab.understanding.scores import score
from fqgan.lab.understanding.words import WordSplitter, chosen_splitter
from fqgan.tokenizer.model import FactorizedTokenizer, load_tokenizer

# Table 6, for two factors
_PAPER = {
    ("continuous", (0,)): 3.67,
    ("continuous", (1,)): 7.15,
    ("continuous", (0, 1)): 10.28,
    ("discrete", (0,)): 2.22,
    ("discrete", (1,)): 7.40,
    ("discrete", (0, 1)): 7.37,
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    feature: str
    """What tables call it."""
    factors: str
    model: ProjectorConfig
    paper: float | None = None
    """CIDEr in Table 6."""

    @property
    def label(self) -> str:
        return f"{self.feature}, {self.factors}" if self.factors != "–" else self.feature


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    tokenizer: str
    language: Path
    """Folder of the language model."""
    data: str
    """Captions to train on."""
    test: str
    """Captions to measure on."""
    split: str
    """Of the latter, where it holds several."""
    images: str
    """Folder of an annotation file's pictures."""
    test_images: str
    out: Path
    size: int
    network_size: int
    small: Small
    batch: int
    workers: int
    beams: int
    tokens: int
    words: WordSplitter

    def training_set(self) -> CaptionSet:
        return open_captions(self.data, "train", self.images)

    def test_set(self) -> CaptionSet:
        return open_captions(self.test, self.split, self.test_images or self.images)

    def bank(self, kind: str, side: str) -> Path:
        """File of features of the pictures of a side, `train` or `test`."""
        return self.out / "features" / f"{side}-{kind}.npy"


@dataclass(frozen=True)
class Job:
    """A row at a seed."""

    row: Row
    seed: int
    config: ProjectorRunConfig
    setting: Setting

    @property
    def folder(self) -> Path:
        return self.setting.out / "rows" / self.row.name / f"seed-{self.seed}"

    @property
    def measured(self) -> Path:
        return self.folder / "measured.json"


def rows_of(tokenizer: TokenizerConfig, base: ProjectorConfig, subsets: Sequence[tuple[int, ...]] = ()) -> list[Row]:
    """A blind baseline, continuous and discrete features of subsets of the factors, and the packaged network.

    Args:
        subsets: of the factors; none: each by itself, and all together.
    """
    k = len(tokenizer.factors)
    chosen = list(subsets) or [*((i,) for i in range(k)), *([tuple(range(k))] if k > 1 else [])]
    for factors in chosen:
        for factor in factors:
            if factor >= k:
                raise UserError(f"--factors names factor {factor}, but the tokenizer has factors 0 to {k - 1}")
    rows = [Row("blind", "None (blind)", "–", replace(base, feature="blind", factors=()))]
    for feature in ("continuous", "discrete"):
        for factors in chosen:
            name = f"{feature}-{'+'.join(map(str, factors))}"
            model = replace(base, feature=feature, factors=factors)
            paper = _PAPER.get((feature, factors)) if k == 2 else None
            rows.append(Row(name, feature.capitalize(), _codebooks(tokenizer, factors), model, paper))
    rows.append(Row("network", "EfficientNet-Lite0", "–", replace(base, feature="network", factors=())))
    return rows


def _codebooks(tokenizer: TokenizerConfig, factors: tuple[int, ...]) -> str:
    k = len(tokenizer.factors)
    if len(factors) == k > 1:
        return "Both" if k == 2 else "All"
    named = " + ".join(str(i + 1) for i in factors)
    return f"Codebook {named} ({', '.join(tokenizer.factors[i].name for i in factors)})"


def orderings_of(rows: Sequence[Row]) -> list[Ordering]:
    """Every row over the blind one, the network over every row, all factors over each, later ones over the first, and
    continuous over discrete."""
    names = {row.name: row for row in rows}
    read = [row for row in rows if row.name not in ("blind", "network")]
    pairs = [("network", "blind"), *((row.name, "blind") for row in read), *(("network", row.name) for row in read)]
    for row in read:
        for other in read:
            one, two = row.model, other.model
            if one.feature == two.feature and set(one.factors) > set(two.factors):
                pairs.append((row.name, other.name))
            if one.feature == two.feature and len(one.factors) == len(two.factors) == 1 and two.factors < one.factors:
                pairs.append((row.name, other.name))
            if one.factors == two.factors and (one.feature, two.feature) == ("continuous", "discrete"):
                pairs.append((row.name, other.name))
    return [Ordering(f"{names[a].label} over {names[b].label}", a, b) for a, b in pairs if {a, b} <= names.keys()]


def prepare(setting: Setting, rows: Sequence[Row], device: str) -> None:
    """Write the features that the rows read, where they are not there yet."""
    make_folder(setting.out / "features")
    chosen = pick_device(device)
    kinds: list[Kind] = sorted({kind_of(row.model) for row in rows})
    tokenizer = load_tokenizer(setting.tokenizer, device=chosen)
    for side, captions in (("train", setting.training_set()), ("test", setting.test_set())):
        content = captions.fingerprint()
        for kind in kinds:
            reader = _reader(kind, tokenizer, setting, chosen)
            path = setting.bank(kind, side)
            if is_filled(reader, content, path):
                continue
            with image_bar(f"{kind} features, {side}", len(captions)) as advance:
                fill(
                    reader,
                    captions.source,
                    content,
                    path,
                    device=chosen,
                    batch=setting.batch,
                    workers=setting.workers,
                    advance=advance,
                )


def _reader(kind: Kind, tokenizer: FactorizedTokenizer, setting: Setting, device: torch.device) -> Reader:
    if kind == "network":
        return network_reader(setting.network_size, device)
    return tokenizer_reader(kind, tokenizer, setting.size, setting.small)


def check(job: Job) -> None:
    """`UserError` where the run in a job's folder is of other settings."""
    job.config.check()
    path = job.folder / "config.json"
    if path.exists() and (told := undeclared(job.config, schema.load(ProjectorRunConfig, path))):
        raise UserError(
            f"{job.folder} was trained with other settings ({told}): choose another --out, or restore the settings"
        )


def run(job: Job) -> None:
    """Train a job's projector, write its captions and score them, where that is not done."""
    told = f"row {job.row.name}, seed {job.seed}"
    protocol = _protocol(job)
    if is_measured(job, protocol):
        say(f"{told}: measured already")
        return
    say(f"{told}: training")
    setting, config = job.setting, job.config
    trained, test = (_features(job, side) for side in ("train", "test"))
    language = _language(setting.language, config.model.prompt, config.train.device, config.train.precision)
    captions = setting.training_set()
    content = {key: protocol[key] for key in ("language_model", "features")}
    content = {**captions.fingerprint(), **{name: str(value) for name, value in content.items()}}
    projector = train_projector(config, language, trained, captions, content, job.folder)
    tests = setting.test_set()
    written: list[str] = []
    with image_bar(f"{told}: captions", len(tests)) as advance:
        options = {"batch": setting.batch, "beams": setting.beams, "tokens": setting.tokens}
        for part in write_captions(projector, language, test, **options):
            written += part
            advance(len(part))
    loss = mean_loss(projector, language, test, [several[0] for several in tests.captions], setting.batch)
    metrics, each = score(written, tests.captions, setting.words)
    result = {"subject": "understanding", "metrics": {**metrics, "loss": loss}, "protocol": protocol}
    result["captions"] = [[text, round(value, 4)] for text, value in zip(written, each, strict=True)]
    write_result(result, job.measured)


def is_measured(job: Job, protocol: dict[str, Any] | None = None) -> bool:
    """Whether a job's captions are there, made as they would be made now."""
    try:
        found = read_result(job.measured)
    except UserError:
        return False
    known = {key: value for key, value in found["protocol"].items() if key != "versions"}
    wanted = {key: value for key, value in (protocol or _protocol(job)).items() if key != "versions"}
    return known == wanted


def _protocol(job: Job) -> dict[str, Any]:
    """All that a row's numbers depend on."""
    setting = job.setting
    settings = {key: value for key, value in schema.flatten(job.config).items() if key not in WATCHING}
    sides = {side: schema.load_json(setting.bank(kind_of(job.row.model), side).with_suffix(".json")) for side in _SIDES}
    protocol = {
        "features": sides,
        "language_model": _digest(setting.language),
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        "captions": {"beams": setting.beams, "tokens": setting.tokens, "batch": setting.batch},
        "words": chosen_splitter(setting.words),
        "device": pick_device(job.config.train.device).type,
    }
    return {**protocol, "versions": versions()}


_SIDES = ("train", "test")
_digest = functools.cache(digest_of)


@functools.lru_cache(maxsize=1)
def _language(folder: Path, prompt: str, device: str, precision: str) -> LanguageModel:
    """One model for all rows of a process."""
    return load_language_model(folder, prompt, pick_device(device), precision)


def _features(job: Job, side: str) -> Features:
    kind = kind_of(job.row.model)
    banks = {name: open_bank(job.setting.bank(kind, name)) for name in _SIDES}
    return features_of(job.row.model, banks[side], banks["train"])


def gpus_for(device: str) -> int:
    """GPUs that jobs are spread over."""
    return torch.cuda.device_count() if device != "cpu" else 0
