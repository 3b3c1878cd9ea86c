"""Everything that can be set, as frozen dataclasses. No torch here, so that the command line starts fast."""

from fqgan.config.classifier import ClassifierConfig, ClassifierRunConfig
from fqgan.config.data import DataConfig, PictureOptions, SourceOptions
from fqgan.config.discriminator import DiscriminatorConfig
from fqgan.config.factor import TEACHER_DIMS, FactorConfig, teacher_dim
from fqgan.config.foreign import ForeignConfig
from fqgan.config.generator import (
    GeneratorConfig,
    GeneratorRunConfig,
    GeneratorTrainConfig,
    SamplingConfig,
)
from fqgan.config.latent import LatentConfig
from fqgan.config.tokenizer import (
    LossConfig,
    QuantizerConfig,
    TokenizerConfig,
    TokenizerRunConfig,
    TokenizerTrainConfig,
)
from fqgan.config.training import OptimizerConfig, TrainConfig
from fqgan.config.understanding import (
    IMAGE,
    TINY,
    TINY_PROJECTOR,
    Feature,
    LanguageConfig,
    LanguageRunConfig,
    ProjectorConfig,
    ProjectorRunConfig,
    UnderstandingSettings,
    WordSplitter,
)

__all__ = [
    "IMAGE",
    "TEACHER_DIMS",
    "TINY",
    "TINY_PROJECTOR",
    "ClassifierConfig",
    "ClassifierRunConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "FactorConfig",
    "Feature",
    "ForeignConfig",
    "GeneratorConfig",
    "GeneratorRunConfig",
    "GeneratorTrainConfig",
    "LanguageConfig",
    "LanguageRunConfig",
    "LatentConfig",
    "LossConfig",
    "OptimizerConfig",
    "PictureOptions",
    "ProjectorConfig",
    "ProjectorRunConfig",
    "QuantizerConfig",
    "SamplingConfig",
    "SourceOptions",
    "TokenizerConfig",
    "TokenizerRunConfig",
    "TokenizerTrainConfig",
    "TrainConfig",
    "UnderstandingSettings",
    "WordSplitter",
    "teacher_dim",
]
