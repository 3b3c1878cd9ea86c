"""`fqgan study SUBJECT ...`: the tables and figures of the paper."""

from __future__ import annotations

from fqgan.commands.subjects import dispatch

SUBJECTS = {
    "ablation": ("PRESET --data.source DATA --out DIR", "Table 3: what each part of the factorized tokenizer is worth"),
    "scaling": ("PRESET --data.source DATA --out DIR", "Table 5: more factors, and more training"),
    "heads": ("PRESET --data STORE --measure.data DATA --out DIR", "Table 4: linear, MLP and auto-regressive heads"),
    "curves": (
        "PRESET --data STORE --triple STORE --measure.data DATA --out DIR",
        "Fig. 8: distance over training, two tokenizers and two sizes",
    ),
    "tokenizers": ("CHECKPOINT ... --data DATA --out DIR", "Table 1 and Fig. 1: tokenizers under one protocol"),
    "generators": ("CHECKPOINT ... --data DATA --out DIR", "Table 2: generators under one protocol"),
    "disentangle": (
        "CHECKPOINT ... --data DATA --out DIR",
        "how far the factors are apart: cosines, mutual information",
    ),
    "probe": ("CHECKPOINT ... --data DATA --out DIR", "linear-probe accuracy of each factor's features"),
    "tsne": ("CHECKPOINT ... --data DATA --out DIR", "Fig. 4 and 6: codes of some classes, by factor"),
    "views": ("CHECKPOINT ... --data DATA --out DIR", "Fig. 3: what each factor draws alone"),
    "understanding": (
        "TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR",
        "Table 6: a language model reads features and codes, and writes captions",
    ),
}
_MODULES: dict[str, str] = {
    **dict.fromkeys(("ablation", "scaling", "heads", "curves"), "study_training"),
    **dict.fromkeys(("disentangle", "probe", "tsne", "views"), "study_inspection"),
    **dict.fromkeys(("tokenizers", "generators"), "study_comparison"),
}


def main(argv: list[str]) -> None:
    """Entry point."""
    dispatch("fqgan study", "study", SUBJECTS, argv, _MODULES)
