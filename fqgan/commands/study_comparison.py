"""`fqgan study tokenizers|generators CHECKPOINT ... --data ...`: models that are there, under one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.commands import evaluate_generator, evaluate_tokenizer
from fqgan.commands.arguments import parse
from fqgan.config import SamplingConfig
from fqgan.config.data import Small
from fqgan.config.ranges import at_least
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.lab.studies.comparison import Compared


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both share; more than that is said by `fqgan evaluate tokenizer|generator --help`."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")]
    """Run folders, checkpoints, exports, released files, or hf:org/name. Each becomes one row of the table."""
    data: str
    """Real images to compare with."""
    names: tuple[str, ...] = ()
    """Names of the checkpoints in the table; by default their paths."""
    out: Path = Path()
    """Folder for table, figure and results. The same command reuses results that are there already."""
    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size of the first model."""
    limit: int = 0
    """Number of real images, spread evenly over the set, and largest number of samples; 0: all."""
    kept: int = 10_000
    """Largest number of images whose features are kept for precision and recall; 0: skip these metrics."""
    small: Small = "enlarge"
    """What to do with images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    paper: bool = True
    """Add the paper's rows below ours."""
    batch: int = 32
    workers: int = 2
    """Number of loader processes."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the models."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Options):
    """Of `study tokenizers`."""

    perceptual: Literal["efficientnet-lite0", "lpips-vgg", "none"] = "efficientnet-lite0"
    """Perceptual distance."""


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(Options, SamplingConfig):
    """Of `study generators`: guidance 2.0, as in Table 2."""

    num: int = 50_000
    """Number of samples of each generator."""
    tokenizer: str = ""
    """Tokenizer that decodes the samples; empty: the one that each generator carries. Released files carry none."""
    seed: int = 0
    """Seed of the samples."""


def main(name: str, argv: list[str]) -> None:
    """Entry point of the study `name`."""
    of_tokenizers = name == "tokenizers"
    table = "Table 1 and Fig. 1: tokenizers" if of_tokenizers else "Table 2: generators"
    kind: Any = TokenizerOptions if of_tokenizers else GeneratorOptions
    options: Any = parse(kind, argv, f"fqgan study {name}", f"{table} under one protocol, beside the paper's.")
    _check(options)
    models, size = (_tokenizers if of_tokenizers else _generators)(options)
    from fqgan.lab.studies import comparison

    shared = [("data", options.data), ("size", size)]
    shared += [(n, getattr(options, n)) for n in ("limit", "kept", "batch", "workers", "precision", "device", "small")]
    if of_tokenizers:
        shared.append(("perceptual", options.perceptual))
        heads, paper, command = comparison.TOKENIZER_FACTS, comparison.paper_tokenizers(), evaluate_tokenizer.main
    else:
        names = ("num", "seed", *(["tokenizer"] if options.tokenizer else []), *SamplingConfig.__dataclass_fields__)
        shared += [(n, getattr(options, n)) for n in names]
        heads, paper, command = comparison.GENERATOR_FACTS, comparison.paper_generators(), evaluate_generator.main
    request = [text for n, value in shared for text in (f"--{n.replace('_', '-')}", *_texts(value))]
    found, files = comparison.compare(
        name, models, heads, command, request, options.features, paper if options.paper else [], options.out
    )
    files = [*found.write(options.out), *files]
    say_lines(files[0].read_text())
    for file in files:
        say(file)


def _texts(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, tuple) else (value,))]


def _check(options: Any) -> None:
    from fqgan.commands.study_inspection import check_names
    from fqgan.lab.report.figures import require_matplotlib

    check_names(options)
    at_least(1, batch=options.batch, num=getattr(options, "num", 1))
    at_least(0, size=options.size, limit=options.limit, kept=options.kept, workers=options.workers)
    if not options.features:
        raise UserError("--features must name a network")
    check_output(options.out, folder=True)
    require_matplotlib()


def _tokenizers(options: Any) -> tuple[list[Compared], int]:
    from fqgan.lab.studies.comparison import Compared
    from fqgan.tokenizer.model import load_tokenizer

    models, size = [], options.size
    for name, path in zip(options.names or map(str, options.checkpoints), options.checkpoints, strict=True):
        tokenizer = load_tokenizer(local := hub.local(path))
        config = tokenizer.config
        size = size or config.image_size
        sizes = [factor.codebook_size for factor in config.factors]
        codes = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " + ".join(map(str, sizes))
        dims = sorted({factor.code_dim for factor in config.factors})
        count = sum(weight.numel() for weight in tokenizer.parameters())
        facts = (str(config.downsampling), codes, ", ".join(map(str, dims)), f"{count / 1e6:.1f}M")
        models.append(Compared(name, local, facts, tokenizer.fingerprint(), config))
    return models, size


def _generators(options: Any) -> tuple[list[Compared], int]:
    from fqgan.data.fingerprint import digest
    from fqgan.generator.model import load_generator
    from fqgan.lab.studies.comparison import Compared
    from fqgan.models.fingerprint import fingerprint

    models, size = [], options.size
    for name, path in zip(options.names or map(str, options.checkpoints), options.checkpoints, strict=True):
        generator = load_generator(local := hub.local(path), tokenizer=options.tokenizer)
        if not generator.has_tokenizer:
            raise UserError(f"{name} carries no tokenizer, as released files don't: name its own with --tokenizer")
        size = size or generator.tokenizer.config.image_size
        count = sum(weight.numel() for n, weight in generator.named_parameters() if not n.startswith("tokenizer."))
        facts = (generator.tokenizer.fingerprint()[:8], f"{count / 1e6:.1f}M")
        weights = digest([fingerprint(generator.state_dict()), generator.tokenizer.fingerprint()])
        models.append(Compared(name, local, facts, weights, generator.tokenizer.config))
    return models, size
