"""One pure function a loss term (Eq. 2, 7, 8), and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.config import LossConfig
from fqgan.engine.distributed import all_reduce_mean, gather_rows
from fqgan.tokenizer.model import TokenizerOutput
from fqgan.tokenizer.quantizers.base import as_rows

_SAMPLES = 512  # of the independence loss: 1024 take 6.4 times as long (LOG.md)
_TINY = 1e-12  # mean squared distance of features that are all the same


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


def independence_loss(features: Sequence[Tensor]) -> Tensor:
    """Dependence of two factors' features at a position, mean over all pairs of factors; in [0, 1].

    The Hilbert-Schmidt independence criterion (Gretton et al. 2005, Eq. 9), normalised as Kornblith et al. 2019 do:

        HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)),  HSIC(X, Y) = tr(K H L H) / (n - 1)^2,  H = I - 1/n

    with K_ij = exp(-|x_i - x_j|^2 / s), s the mean of |x_i - x_j|^2, and L of Y alike. It is 0 only if the n pairs'
    joint distribution is the product of its margins, in whatever way one could depend on the other: Eq. 7's angle and
    covariances vanish for many dependent pairs. The scale of features has no influence.

    Args:
        features: k tensors (b, d, h, w), of any d each. The n samples are this rank's b * h * w positions; of more than
            512, that many from torch's generator. k = 1 gives 0.
    """
    rows = [as_rows(each) for each in features]
    if (n := len(rows[0])) > _SAMPLES:
        drawn = torch.randperm(n, device=rows[0].device)[:_SAMPLES]
        rows = [each[drawn] for each in rows]
    grams = [F.normalize(_centred_gram(each).flatten(), dim=0) for each in rows]
    pairs = [torch.dot(a, b) for a, b in combinations(grams, 2)]
    return torch.stack(pairs).mean() if pairs else features[0].new_zeros(())


def _centred_gram(rows: Tensor) -> Tensor:
    """H K H (n, n) of rows (n, d)."""
    rows = rows - rows.mean(0)  # leaves distances as they are, more exactly computed
    squares = rows.square().sum(1)
    distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)
    gram = torch.exp(-distances / distances.mean().clamp(min=_TINY))
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


def info_nce_loss(predictions: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE of predicted against teacher features (section 3.2.2): rows are predictions, the match is the diagonal.

    Both (b, d) are l2-normalised and gathered over ranks with gradient, so that every image's negatives are the
    whole global micro-batch. On one image in all the loss is 0.
    """
    predictions = gather_rows(F.normalize(predictions.float(), dim=1))
    targets = gather_rows(F.normalize(targets.float(), dim=1))
    logits = predictions @ targets.T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine similarity of predicted and teacher features, both (b, d, ...), mean over all but d; in [0, 2]."""
    return 1 - F.cosine_similarity(predictions.float(), targets.float(), dim=1).mean()


def spatial_loss(predictions: Tensor, maps: Tensor) -> Tensor:
    """`cosine_loss` at each position of predicted maps (b, d, h, w) and a teacher's (b, d, h', w') (REPA, Yu et al.
    2024, Eq. 8; on a tokenizer's codes as VA-VAE, Yao et al. 2025). The teacher's are resized, bilinear and
    antialiased."""
    size = predictions.shape[2:]
    return cosine_loss(predictions, F.interpolate(maps.float(), size, mode="bilinear", antialias=True))


def gan_generator_loss(fake: Tensor, kind: str) -> Tensor:
    """Generator's loss on the logits of reconstructions, a mean over logits.

    -fake for `hinge` and `vanilla` (VQGAN's), softplus(-fake) for `non-saturating` (Goodfellow et al. 2014).
    """
    fake = fake.float()
    return F.softplus(-fake).mean() if kind == "non-saturating" else -fake.mean()


def gan_discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Discriminator's loss on the logits of images and of reconstructions, half the sum of two means over logits.

    relu(1 - real) and relu(1 + fake) for `hinge`; softplus(-real) and softplus(fake), the binary cross-entropy, for
    `vanilla` and `non-saturating`. The half is VQGAN's.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def lecam_loss(real: Tensor, fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """LeCam regularisation (Tseng et al. 2021): mean (real - mean_fake)^2 + mean (fake - mean_real)^2.

    Args:
        mean_real: moving average of the logits of images; `mean_fake` of reconstructions.
    """
    return (real.float() - mean_fake).square().mean() + (fake.float() - mean_real).square().mean()


def r1_loss(logits: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018) without its gamma/2: |grad D(image)|^2, mean over images (b, 3, H, W).

    D(image) is the mean of an image's logits (b, ...). Differentiable a second time.
    """
    judgements = logits.flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(judgements.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def adaptive_weight(image_loss: Tensor, gan_loss: Tensor, reconstruction: Tensor) -> Tensor:
    """VQGAN's adaptive weight (Esser et al. 2021, Eq. 7): |grad image_loss| / (|grad gan_loss| + 1e-4) in [0, 1e4].

    The gradients are taken at the reconstruction (b, 3, H, W), not at the decoder's last layer: nothing passes through
    the decoder twice. Both cover the global micro-batch. A norm is the root mean square over values of b * 3 * H * W
    times the gradient, which a mean over more images or pixels leaves as it is: 1e-4 guards against a vanished
    gradient of the GAN and otherwise does not count.
    """
    losses = (image_loss, gan_loss)
    gradients = [torch.autograd.grad(loss, reconstruction, retain_graph=True)[0] for loss in losses]
    squares = all_reduce_mean(torch.stack([gradient.float().square().sum() for gradient in gradients]))
    image_norm, gan_norm = (squares * reconstruction.numel()).sqrt()
    return (image_norm / (gan_norm + 1e-4)).clamp(max=1e4)


def tokenizer_loss(
    output: TokenizerOutput,
    images: Tensor,
    config: LossConfig,
    *,
    perceptual: Tensor | None = None,
    targets: Sequence[Tensor | None] = (),
    maps: Sequence[Tensor | None] = (),
    gan: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 8: the weighted sum of all terms, and each term detached and unweighted.

    Args:
        perceptual: distances (b,) of the reconstructions, where there is such a term.
        targets: teacher features (b, teacher_dim) a factor, None for factors without a teacher.
        maps: spatial teachers' maps (b, spatial_teacher_dim, h', w') a factor, None for factors without one.
        gan: once the GAN has started, gives its loss and weight; called with the weighted sum of the terms that
            compare the reconstruction with the images.
    """
    quantized = output.quantized
    terms = {"reconstruction": reconstruction_loss(output.reconstruction, images, config.reconstruction)}
    weights: dict[str, float | Tensor] = {"reconstruction": config.reconstruction_weight}

    def add(name: str, value: Tensor, weight: float | Tensor) -> None:
        terms[name], weights[name] = value, weight

    if perceptual is not None:
        add("perceptual", perceptual.mean(), config.perceptual_weight)
    compared = list(terms)
    learning = [q for q in quantized if q.embeddings.requires_grad]  # EMA codes and fixed ones are not among them
    if learning:
        add("codebook", _total([q.codebook_loss for q in learning]), config.codebook_weight)
    add("commitment", _total([q.commitment_loss for q in quantized]), config.commitment_weight)
    if config.entropy_weight:
        add("entropy", _total([q.entropy_loss for q in quantized]), config.entropy_weight)
    if config.disentangle_weight and len(quantized) > 1:
        add("disentangle", disentanglement_loss([q.vectors for q in quantized]), config.disentangle_weight)
    if config.independence_weight and len(quantized) > 1:
        add("independence", independence_loss([q.features for q in quantized]), config.independence_weight)
    matches = [
        cosine_loss(prediction, target)
        if config.representation == "cosine"
        else info_nce_loss(prediction, target, config.representation_temperature)
        for prediction, target in zip(output.predictions, targets, strict=False)
        if prediction is not None and target is not None
    ]
    if matches:
        add("representation", _total(matches), config.representation_weight)
    aligned = [spatial_loss(a, b) for a, b in zip(output.maps, maps, strict=False) if a is not None and b is not None]
    if aligned:
        add("spatial", _total(aligned), config.spatial_weight)
    logged = {}
    if gan is not None:
        gan_loss, gan_weight = gan(_total([weights[name] * terms[name] for name in compared]))
        add("gan", gan_loss, gan_weight)
        logged["gan_weight"] = gan_weight
    total = _total([weights[name] * term for name, term in terms.items()])
    return total, {f"{name}_loss": term.detach() for name, term in terms.items()} | logged


def _total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
