"""A small classifier of our own: features for data that no pretrained network should judge, or that have none.

A network trained on ImageNet has seen other pictures than CIFAR's at another size, and may have taught the tokenizer
that it is to measure. One that is trained on the data's own training split has done neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.config import ClassifierConfig
from fqgan.engine import checkpoint

NAME = "classifier"


class Classifier(nn.Module):
    """A ResNet of torchvision's basic blocks: images (b, 3, H, W) in [-1, 1] -> logits (b, num_classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        width = config.channels
        stem = nn.Conv2d(3, width, 3, config.stem, 1, bias=False)
        layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
        for stage in range(config.stages):
            wider = width * 2 if stage else width
            for block in range(config.res_blocks):
                halves = bool(stage) and not block
                skip = nn.Sequential(nn.Conv2d(width, wider, 1, 2, bias=False), nn.BatchNorm2d(wider))
                layers.append(BasicBlock(width, wider, 2 if halves else 1, skip if halves else None))
                width = wider
        self.body = nn.Sequential(*layers)
        self.outputs = nn.Linear(config.dim, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """(b, dim): the last map, averaged over positions."""
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(self.features(images))

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        """The output layer."""
        return self.outputs.parameters()


def load_classifier(path: Path) -> Classifier:
    """The classifier of a run folder (its newest whole checkpoint) or of one of its checkpoints, in eval mode: the
    moving average of its weights where there is one. `UserError` where there is none, or its files are damaged."""
    folder = checkpoint.newest(path)
    if not (folder / f"{NAME}.safetensors").is_file():
        raise UserError(f"{path} is no run or checkpoint of fqgan train-classifier: it has no {NAME}.safetensors")
    if problem := checkpoint.problem_of(folder):
        raise UserError(f"checkpoint {folder}: {problem}")
    content: dict[str, Any] = schema.load_json(folder / "config.json").get("model", {})
    model = Classifier(schema.from_dict(ClassifierConfig, content, str(folder / "config.json")))
    averaged = folder / "ema.safetensors"
    weights = averaged if averaged.exists() else folder / f"{NAME}.safetensors"
    checkpoint.load_module(model, checkpoint.load_tensors(weights), str(weights))
    return model.eval()


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(b, classes), (b,) -> (b,) float32: 1 where the largest logit is the label's."""
    return (logits.argmax(1) == labels).to(torch.float32)
