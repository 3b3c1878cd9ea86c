"""`fqgan evaluate tokenizer|generator|samples|statistics|compare ...`."""

from __future__ import annotations

from importlib import import_module

from fqgan.errors import UserError
from fqgan.schema import did_you_mean

SUBJECTS = {
    "tokenizer": ("CHECKPOINT --data DATA", "reconstructions of images: PSNR, SSIM, perceptual distance, rFID, codes"),
    "generator": ("CHECKPOINT --data REFERENCE --num 50000", "generate images, and compare them with real ones"),
    "samples": ("REFERENCE SAMPLES", "any two sets: folders, parquet files, ADM's .npz, saved statistics"),
    "statistics": ("DATA --out FILE.safetensors", "save a set's features and statistics, to compare with later"),
    "compare": ("A B", "two results side by side, and whether their protocols are one"),
}


def main(argv: list[str]) -> None:
    """Entry point."""
    if not argv or argv[0] not in SUBJECTS:
        rows = [f"  fqgan evaluate {name} {usage}\n      {about}" for name, (usage, about) in SUBJECTS.items()]
        if {"-h", "--help"} & set(argv):
            print("usage: fqgan evaluate SUBJECT ...\n\n" + "\n".join(rows) + "\n\nEach has --help.")
            return
        usage = f"fqgan evaluate {'|'.join(SUBJECTS)} ..."
        found = f"cannot evaluate {argv[0]!r}{did_you_mean(argv[0], SUBJECTS)}" if argv else "name what to evaluate"
        raise UserError(f"{found}: {usage}")
    import_module(f"fqgan.commands.evaluate_{argv[0]}").main(argv[1:])
