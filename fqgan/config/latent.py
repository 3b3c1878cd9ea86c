"""What a tokenizer's training changes between its codes and its decoder."""

from __future__ import annotations

from dataclasses import dataclass

from fqgan.base.errors import UserError
from fqgan.config.factor import IMPLICIT, FactorConfig
from fqgan.config.ranges import setting


@dataclass(frozen=True)
class LatentConfig:
    """What training changes of the codes before they are decoded. Only the reconstruction sees it: the quantizers' and
    the factors' own losses, usage and validation keep the codes that were chosen."""

    perturb_share: float = setting(0.0, below=1)
    """Share of each factor's codes that are decoded as a near code, so that the decoder learns to bear a generator's
    mistakes (latent perturbation, RobustTok, Qiu et al. 2025); 0: none."""
    perturb_neighbours: int = setting(10, least=1)
    """Number of nearest other codes from which the near code is drawn. fsq, lfq and bsq take a code one level away in
    one channel instead, whatever the number."""
    perturb_anneal: bool = True
    """Let `perturb_share` fall linearly to 0 over the run; False: keep it."""
    mask_share: float = setting(0.0, below=1)
    """Share of the images that are decoded from their first factors alone, 1 to k - 1 of them, a number drawn for each
    image; the others' vectors are 0, as for factors that `decode` does not keep. So the first factors carry most
    (nested dropout, Rippel et al. 2014); 0: none."""

    codes: str = setting("", changeable=False)
    """Token store of the training images in which a generator has drawn a share of each image's codes again (`fqgan
    redraw`): they are decoded in place of the images' own, so that the decoder learns to make pictures of what a
    generator draws (post-training, Qiu et al. 2025). With `train.only` decoder; empty: the images' own codes."""

    def check(self, factors: tuple[FactorConfig, ...]) -> None:
        """Raise `UserError` for what these factors do not have."""
        if self.codes and (changed := next((n for n in ("perturb_share", "mask_share") if getattr(self, n)), "")):
            raise UserError(f"latent.codes are decoded as they are: set latent.{changed} to 0")
        if self.mask_share and len(factors) == 1:
            raise UserError("latent.mask_share masks all factors but the first, and there is one: set it to 0")
        if not self.perturb_share:
            return
        for factor in factors:
            if factor.quantizer not in IMPLICIT and factor.codebook_size <= self.perturb_neighbours:
                raise UserError(
                    f"latent.perturb_neighbours {self.perturb_neighbours} needs as many other codes, and factor "
                    f"{factor.name} has {factor.codebook_size} in all"
                )
