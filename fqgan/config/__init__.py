"""Everything that can be set, as frozen dataclasses. No torch here, so that the command line starts fast."""

from fqgan.config.classifier import ClassifierConfig, ClassifierRunConfig
from fqgan.config.generator import (
    GeneratorConfig,
    GeneratorRunConfig,
    GeneratorTrainConfig,
    SamplingConfig,
)
from fqgan.config.tokenizer import (
    TEACHER_DIMS,
    DataConfig,
    DiscriminatorConfig,
    FactorConfig,
    LossConfig,
    QuantizerConfig,
    TokenizerConfig,
    TokenizerRunConfig,
    TokenizerTrainConfig,
    teacher_dim,
)
from fqgan.config.training import OptimizerConfig, TrainConfig

__all__ = [
    "TEACHER_DIMS",
    "ClassifierConfig",
    "ClassifierRunConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "FactorConfig",
    "GeneratorConfig",
    "GeneratorRunConfig",
    "GeneratorTrainConfig",
    "LossConfig",
    "OptimizerConfig",
    "QuantizerConfig",
    "SamplingConfig",
    "TokenizerConfig",
    "TokenizerRunConfig",
    "TokenizerTrainConfig",
    "TrainConfig",
    "teacher_dim",
]
