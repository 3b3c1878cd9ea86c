"""One pure function a loss term (Eq. 2, 7, 8), and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.config import LossConfig
from fqgan.engine.distributed import gather_rows
from fqgan.tokenizer.model import TokenizerOutput
from fqgan.tokenizer.quantize import Quantized


def reconstruction_loss(reconstruction: Tensor, images: Tensor, kind: str) -> Tensor:
    """Mean absolute (`l1`) or squared (`l2`) pixel difference."""
    difference = reconstruction.float() - images
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def disentanglement_loss(vectors: Sequence[Tensor]) -> Tensor:
    """Eq. 7: squared dot product of two factors' codes, mean over positions and over all pairs of factors.

    Args:
        vectors: k tensors (b, d, h, w) of unit length over d. k = 1 gives 0.
    """
    pairs = [(a * b).sum(1).square().mean() for a, b in combinations(vectors, 2)]
    return torch.stack(pairs).mean() if pairs else vectors[0].new_zeros(())


def info_nce_loss(predictions: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE of predicted against teacher features (section 3.2.2): rows are predictions, the match is the diagonal.

    Both (b, d) are l2-normalised and gathered over ranks with gradient, so that every image's negatives are the
    whole global micro-batch. On one image in all the loss is 0.
    """
    predictions = gather_rows(F.normalize(predictions.float(), dim=1))
    targets = gather_rows(F.normalize(targets.float(), dim=1))
    logits = predictions @ targets.T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Generator's hinge loss on the logits of reconstructions."""
    return -fake.float().mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's hinge loss on the logits of images and of reconstructions."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def tokenizer_loss(
    output: TokenizerOutput,
    images: Tensor,
    config: LossConfig,
    *,
    perceptual: Tensor | None = None,
    targets: Sequence[Tensor | None] = (),
    fake_logits: Tensor | None = None,
    gan_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 8: the weighted sum of all terms, and each term detached and unweighted.

    Args:
        perceptual: distances (b,) of the reconstructions, where there is such a term.
        targets: teacher features (b, teacher_dim) a factor, None for factors without a teacher.
        fake_logits: the discriminator's logits of the reconstructions, once the GAN has started.
    """
    quantized = output.quantized
    terms = {"reconstruction": reconstruction_loss(output.reconstruction, images, config.reconstruction)}
    weights = {"reconstruction": config.reconstruction_weight}

    def add(name: str, value: Tensor, weight: float) -> None:
        terms[name], weights[name] = value, weight

    if perceptual is not None:
        add("perceptual", perceptual.mean(), config.perceptual_weight)
    if any(q.embeddings.requires_grad for q in quantized):  # EMA codes have nothing to learn from it
        add("codebook", _total([q.codebook_loss for q in quantized]), config.codebook_weight)
    add("commitment", _total([q.commitment_loss for q in quantized]), config.commitment_weight)
    if config.entropy_weight:
        add("entropy", _total([q.entropy_loss for q in quantized]), config.entropy_weight)
    if config.disentangle_weight and len(quantized) > 1:
        vectors = [_disentangled(q, config.disentangle_codebooks) for q in quantized]
        add("disentangle", disentanglement_loss(vectors), config.disentangle_weight)
    matches = [
        info_nce_loss(prediction, target, config.representation_temperature)
        for prediction, target in zip(output.predictions, targets, strict=False)
        if prediction is not None and target is not None
    ]
    if matches:
        add("representation", _total(matches), config.representation_weight)
    if fake_logits is not None:
        add("gan", hinge_generator_loss(fake_logits), gan_weight)
    total = _total([weights[name] * term for name, term in terms.items()])
    return total, {f"{name}_loss": term.detach() for name, term in terms.items()}


def _disentangled(quantized: Quantized, reach_codebook: bool) -> Tensor:
    """The vectors that Eq. 7 sees; their gradient reaches the codebook too if asked for."""
    if not reach_codebook:
        return quantized.vectors
    carried = quantized.carried
    return quantized.embeddings + carried - carried.detach()


def _total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
