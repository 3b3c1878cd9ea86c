"""The studies by name. No torch here, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fqgan.lab.studies import generators, quantizers, recipe, tokenizers
from fqgan.lab.studies.plan import Study
from fqgan.lab.studies.settings import (
    CurvesStudy,
    DisentangleOptions,
    GeneratorsOptions,
    GeneratorStudy,
    LearnabilityOptions,
    ProbeOptions,
    TokenizersOptions,
    TokenizerStudy,
    TsneOptions,
    ViewsOptions,
)


@dataclass(frozen=True)
class Entry:
    """A study: what it is about, what it can be asked for, and what runs it."""

    usage: str
    about: str
    options: type[Any]
    run: str = ""
    """`module:function` of `fqgan.lab` that takes the options and returns the files, the table first. Empty of a study
    whose rows are trained."""
    presets: Mapping[str, Any] = field(default_factory=dict)
    """Of a study whose rows are trained: the settings that they differ from."""
    rows: Callable[[Any, str, Any], Study] | None = None
    """Settings, preset and options -> rows that are trained."""


def _curves(base: Any, preset: str, options: CurvesStudy) -> Study:
    return generators.curves(base, generators.LARGER[preset], options.triple, options.triple_validation)


_TRAIN, _LOOK = "PRESET --data.source DATA --out DIR", "CHECKPOINT ... --data DATA --out DIR"
STUDIES = {
    "ablation": Entry(
        _TRAIN,
        "Table 3: what each part of the factorized tokenizer is worth",
        TokenizerStudy,
        presets=tokenizers.ABLATION_PRESETS,
        rows=lambda base, *_: tokenizers.ablation(base),
    ),
    "scaling": Entry(
        _TRAIN,
        "Table 5: more factors, and more training",
        TokenizerStudy,
        presets=tokenizers.SCALING_PRESETS,
        rows=lambda base, *_: tokenizers.scaling(base),
    ),
    "quantizers": Entry(
        _TRAIN,
        "quantizers and compositions of factors at equal bits",
        TokenizerStudy,
        presets=quantizers.QUANTIZERS_PRESETS,
        rows=lambda base, *_: quantizers.quantizers(base),
    ),
    "recipe": Entry(
        _TRAIN,
        "from the paper's recipe to ours: each lever alone, and all together",
        TokenizerStudy,
        presets=recipe.TOKENIZER_PRESETS,
        rows=lambda base, *_: recipe.recipe(base, recipe.TOKENIZER_LEVERS),
    ),
    "heads": Entry(
        "PRESET --data STORE --measure.data DATA --out DIR",
        "Table 4: linear, MLP and auto-regressive heads",
        GeneratorStudy,
        presets=generators.HEADS_PRESETS,
        rows=lambda base, *_: generators.heads(base),
    ),
    "curves": Entry(
        "PRESET --data STORE --triple STORE --measure.data DATA --out DIR",
        "Fig. 8: distance over training, two tokenizers and two sizes",
        CurvesStudy,
        presets=generators.CURVES_PRESETS,
        rows=_curves,
    ),
    "generator-recipe": Entry(
        "PRESET --data STORE --measure.data DATA --out DIR",
        "the same of a generator",
        GeneratorStudy,
        presets=recipe.GENERATOR_PRESETS,
        rows=lambda base, *_: recipe.recipe(base, recipe.GENERATOR_LEVERS),
    ),
    "tokenizers": Entry(
        _LOOK, "Table 1 and Fig. 1: tokenizers under one protocol", TokenizersOptions, "studies.comparison:tokenizers"
    ),
    "generators": Entry(
        _LOOK, "Table 2: generators under one protocol", GeneratorsOptions, "studies.comparison:generators"
    ),
    "learnability": Entry(
        "TOKENIZER ... --data DATA --out DIR",
        "which tokenizer's codes are easy to generate: small generators on each",
        LearnabilityOptions,
        "studies.learnability:learnability",
    ),
    "disentangle": Entry(
        _LOOK,
        "how far the factors are apart: cosines, mutual information",
        DisentangleOptions,
        "studies.disentangle:disentangle",
    ),
    "probe": Entry(_LOOK, "linear-probe accuracy of each factor's features", ProbeOptions, "studies.probe:probe"),
    "tsne": Entry(_LOOK, "Fig. 4 and 6: codes of some classes, by factor", TsneOptions, "studies.tsne:tsne"),
    "views": Entry(_LOOK, "Fig. 3: what each factor draws alone", ViewsOptions, "studies.views:views"),
}
