"""`fqgan study ablation|scaling|... ...`."""

from __future__ import annotations

from fqgan.commands.subjects import dispatch

SUBJECTS = {
    "ablation": ("PRESET --data.source DATA --out DIR", "Table 3: what each part of the factorized tokenizer is worth"),
    "scaling": ("PRESET --data.source DATA --out DIR", "Table 5: more factors, and more training"),
    "understanding": (
        "TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR",
        "Table 6: a language model reads features and codes, and writes captions",
    ),
}
_TRAINED: dict[str, str] = dict.fromkeys(("ablation", "scaling"), "study_training")


def main(argv: list[str]) -> None:
    """Entry point."""
    dispatch("fqgan study", "study", SUBJECTS, argv, _TRAINED)
