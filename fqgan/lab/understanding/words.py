"""Captions as words in the manner of the Penn Treebank, for the metrics that compare them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fqgan.base.errors import UserError, in_one_line
from fqgan.config import WordSplitter
from fqgan.lab.understanding import EXTRA

Words = tuple[str, ...]

PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!"])
PUNCTUATION |= frozenset([",", ":", "-", "--", "...", ";"])
"""What COCO's evaluation leaves out. Brackets are in it in capitals but come in small letters, so that they count."""
_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "…"})
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|ft|prof|sgt|capt|lt|mt"
_TOKEN = re.compile(
    rf"""https?://\S+
    | (?:[a-z]\.){{2,}}                             # u.s.
    | (?:{_ABBREVIATIONS})\.(?!\w)
    | '(?:s|m|d|re|ve|ll|n'|tis|twas)(?!\w)         # parts of contractions that stand alone
    | [^\W_]+(?:['/.,:&@-][^\W_]+)*                 # words and numbers with what joins them
    | \.{{2,}} | [!?]+ | -+ | \S""",
    re.VERBOSE,
)
_CONTRACTED = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))$")
_JOINED = {
    "cannot": ("can", "not"),
    **{f"{verb}{end}": (verb, end) for verb, end in (("gon", "na"), ("wan", "na"), ("got", "ta"))},
    **{f"{verb}me": (verb, "me") for verb in ("lem", "gim")},
    **{f"'t{verb}": ("'t", verb) for verb in ("is", "was")},
}
_NUMBER = re.compile(r"[\d.,:/-]+")


def split_words(caption: str) -> Words:
    """The words of one caption: small letters, contractions split (`is n't`, `dog 's`, `can not`), words with inner
    hyphens, slashes and full stops whole (`t-shirt`, `u.s.`), symbols alone, round brackets as `-lrb-` and `-rrb-`, and
    without `PUNCTUATION`.

    These are the rules of Stanford's PTBTokenizer with `-lowerCase` as far as captions need them, without its lists of
    abbreviations and its rarer contractions.
    """
    words: list[str] = []
    for token in _TOKEN.findall(caption.lower().translate(_PLAIN)):
        words += _parts(token)
    return tuple(word for word in words if word not in PUNCTUATION)


def _parts(token: str) -> tuple[str, ...]:
    if token in _JOINED:
        return _JOINED[token]
    if token == '"' or set(token) <= {"-"} or set(token) <= {"."} or token == "…":
        return ()
    if found := _CONTRACTED.match(token):
        return (*_parts(found[1]), found[2])
    if any(mark in token for mark in ",:&") and not _NUMBER.fullmatch(token) and "//" not in token:
        return tuple(part for part in re.split(r"([,:&])", token) if part)
    return (_BRACKETS.get(token, token),)


def java_tokenizer() -> tuple[str, Path] | None:
    """The programme `java` and the archive of Stanford's tokenizer that pycocoevalcap carries; None where one of them
    is missing."""
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if not java or not package or not package.submodule_search_locations:
        return None
    jar = Path(next(iter(package.submodule_search_locations)), _JAR)
    return (java, jar) if jar.is_file() else None


def chosen_splitter(splitter: WordSplitter) -> Literal["java", "python"]:
    """Which one `auto` stands for: Stanford's where it is at hand. `UserError` where `java` is asked for in vain."""
    if splitter == "auto":
        return "java" if java_tokenizer() else "python"
    if splitter == "java" and not java_tokenizer():
        raise UserError(f"Stanford's tokenizer needs Java and a package: pip install 'fqgan[{EXTRA}]'")
    return splitter


def split_captions(captions: Sequence[str], splitter: WordSplitter = "auto") -> list[Words]:
    """The words of many captions, without `PUNCTUATION`: by `split_words`, or by Stanford's PTBTokenizer 3.4.1, which
    COCO's evaluation uses. `UserError` where that is asked for in vain or fails."""
    if chosen_splitter(splitter) == "python":
        return [split_words(caption) for caption in captions]
    found = java_tokenizer()
    assert found is not None
    lines = [" ".join(caption.split()) for caption in captions]
    command = [found[0], "-cp", str(found[1]), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # UTF-8 whatever the machine's own encoding
    command[1:1] = ["-Dfile.encoding=UTF-8"]
    done = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, encoding="utf-8", check=False
    )
    result = done.stdout.split("\n")[: len(lines)]
    if done.returncode or len(result) < len(lines):
        problem = in_one_line(ValueError(done.stderr or f"{len(result)} lines for {len(lines)}"))
        raise UserError(f"Stanford's tokenizer failed ({problem}): the tokenizer python needs no Java")
    return [tuple(word for word in line.split() if word not in PUNCTUATION) for line in result]
