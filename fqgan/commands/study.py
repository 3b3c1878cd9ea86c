"""`fqgan study ablation|scaling|... ...`."""

from __future__ import annotations

from fqgan.commands.subjects import dispatch

SUBJECTS = {
    "ablation": ("PRESET --data.source DATA --out DIR", "Table 3: what each part of the factorized tokenizer is worth"),
    "scaling": ("PRESET --data.source DATA --out DIR", "Table 5: more factors, and more training"),
}
_TRAINED: dict[str, str] = dict.fromkeys(("ablation", "scaling"), "study_training")


def main(argv: list[str]) -> None:
    """Entry point."""
    dispatch("fqgan study", "study", SUBJECTS, argv, _TRAINED)
