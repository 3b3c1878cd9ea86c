"""`fqgan evaluate tokenizer|codes|generator|likelihood|samples|statistics|compare ...`."""

from __future__ import annotations

from importlib import import_module

from fqgan.commands.subjects import choose

SUBJECTS = {
    "tokenizer": ("CHECKPOINT --data DATA", "reconstructions of images: PSNR, SSIM, perceptual distance, rFID, codes"),
    "codes": ("CHECKPOINT --data DATA", "what a tokenizer's codes tell of each other, and pictures with wrong codes"),
    "generator": ("CHECKPOINT --data REFERENCE --num 50000", "generate images, and compare them with real ones"),
    "likelihood": ("GENERATOR --data DATA", "bits of images' codes under a generator, and the class that fits best"),
    "samples": ("REFERENCE SAMPLES", "any two sets: folders, parquet files, ADM's .npz, saved statistics"),
    "statistics": ("DATA --out FILE.safetensors", "save a set's features and statistics, to compare with later"),
    "compare": ("A B", "two results side by side; refuses them if their protocols differ"),
}


def main(argv: list[str]) -> None:
    """Entry point."""
    if name := choose("fqgan evaluate", "evaluate", SUBJECTS, argv):
        import_module(f"fqgan.commands.evaluate_{name}").main(argv[1:])
