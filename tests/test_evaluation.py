"""Scores of few pictures, and of classes of which none was seen."""

from __future__ import annotations

import torch

from fqgan.tokenizer.validation import Scores

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_class_without_pictures_has_no_scores() -> None:
    """As with --limit on many classes, or where all pictures of a class are unreadable."""
    scores = Scores("cpu", lambda x, y: (x - y).abs().mean((1, 2, 3)), classes=("cat", "dog", "emu"))
    scores.update(IMAGES, IMAGES.roll(1, 3), torch.tensor([0, 2, -1]))
    classes = scores.compute()["classes"]
    assert list(classes) == ["cat", "emu"]
    assert all(set(numbers) == {"psnr_pooled", "perceptual"} for numbers in classes.values())
