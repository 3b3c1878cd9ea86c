"""The adversarial side of Eq. 2: a discriminator with its losses, and the weight of the generator's term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fqgan.config import DiscriminatorConfig
from fqgan.engine.distributed import all_reduce_mean
from fqgan.nets.features import Teacher
from fqgan.tokenizer.augment import augmented
from fqgan.tokenizer.discriminator import PatchGAN, StyleGANDiscriminator, as_critic, statistics_kept
from fqgan.tokenizer.frozen import FrozenDiscriminator
from fqgan.tokenizer.losses import adaptive_weight, gan_discriminator_loss, gan_generator_loss, lecam_loss, r1_loss


class Adversary:
    """A discriminator, what it and the generator minimise, and LeCam's moving averages.

    The averages are a buffer of the discriminator, `logit_means` (2,): of images, of reconstructions. So they are in
    its checkpoint, and every rank loads them.
    """

    def __init__(self, config: DiscriminatorConfig, image_size: int, backbone: Teacher | None = None):
        self.config = config
        self.discriminator = build_discriminator(config, image_size, backbone)
        if config.lecam_weight:
            self.discriminator.register_buffer("logit_means", torch.zeros(2))
        self._step_means: list[Tensor] = []

    def seen(self, images: Tensor) -> Tensor:
        """What the discriminator sees of images or reconstructions (b, 3, H, W): `discriminator.augment` changes them,
        each in its own way. Draws come from torch's generator."""
        return augmented(images, self.config.augment)

    def generator_term(self, reconstruction: Tensor, step: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The generator's GAN loss on reconstructions (b, 3, H, W), judged at once, and its weight.

        Returns a function of the image losses' weighted sum, which the adaptive weight compares with.
        """
        with as_critic(self.discriminator) as critic:
            (logits,) = critic(self.seen(reconstruction))
        loss = gan_generator_loss(logits, self.config.loss)

        def term(image_loss: Tensor) -> tuple[Tensor, Tensor]:
            weight = loss.new_full((), self.weight(step))
            if self.config.adaptive:
                weight = weight * adaptive_weight(image_loss, loss, reconstruction)
            return loss, weight

        return term

    def weight(self, step: int) -> float:
        """Weight of the generator's term at optimizer step `step` (from 0), without the adaptive factor."""
        done = step - self.config.start
        return self.config.weight * min(1.0, done / self.config.warmup_steps if self.config.warmup_steps else 1.0)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, images: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the discriminator minimises at a step, and detached terms, unweighted.

        Args:
            real: logits of `images` (b, 3, H, W) as they are `seen`, from the network as it is wrapped for several
                ranks.
            fake: logits of their reconstructions.
        """
        config, age = self.config, step - self.config.start
        total = loss = gan_discriminator_loss(real, fake, config.loss)
        terms = {
            "discriminator_loss": loss,
            "real_logits": real.float().mean(),
            "fake_logits": fake.float().mean(),
            "real_accuracy": (real > 0).float().mean(),
            "fake_accuracy": (fake < 0).float().mean(),
        }
        if config.lecam_weight:
            self._step_means.append(torch.stack([terms["real_logits"], terms["fake_logits"]]).detach())
            if age:  # the first step has no averages to compare with
                terms["lecam_loss"] = lecam_loss(real, fake, *self.discriminator.get_buffer("logit_means"))
                total = total + config.lecam_weight * terms["lecam_loss"]
        if config.r1_weight and age % config.r1_every == 0:
            terms["r1_loss"] = self._r1(images)
            total = total + 0.5 * config.r1_weight * config.r1_every * terms["r1_loss"]
        return total, {name: term.detach() for name, term in terms.items()}

    def _r1(self, images: Tensor) -> Tensor:
        """R1 in float32, in a pass of its own.

        The module is called unwrapped. Its weights' gradients still meet DDP's hooks, once each and summed with those
        of the wrapped pass, since one backward pass covers both.
        """
        images = images.detach().requires_grad_()
        with torch.autocast(images.device.type, enabled=False), statistics_kept(self.discriminator):
            (logits,) = self.discriminator(self.seen(images))
            return r1_loss(logits, images)

    def abandon_step(self) -> None:
        """Forget the logits of a step that is left out."""
        self._step_means = []

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take the means of a step's logits, over its micro-batches and all ranks, into LeCam's averages.

        The decay rises as n / (9 + n) over the GAN's steps n = 0, 1, ... up to `lecam_decay`: the first step's means
        are taken as they are.
        """
        if not self._step_means:
            return
        means = all_reduce_mean(torch.stack(self._step_means).mean(0))
        self._step_means = []
        age = step - self.config.start
        self.discriminator.get_buffer("logit_means").lerp_(means, 1 - min(self.config.lecam_decay, age / (9 + age)))


def build_discriminator(config: DiscriminatorConfig, image_size: int, backbone: Teacher | None = None) -> nn.Module:
    """The discriminator of a config for images of `image_size` pixels a side; of the kind `frozen` on a `backbone`."""
    if config.kind == "frozen":
        assert backbone is not None, "its frozen network comes with the teachers"
        return FrozenDiscriminator(backbone, config.depths, config.channels, config.norm)
    if config.kind == "stylegan":
        return StyleGANDiscriminator(config.channels, image_size)
    return PatchGAN(config.channels, config.layers, config.norm)
