"""The exceptions that stand for a user's mistake, and what others say in one line."""

import re
from typing import Any


class UserError(ValueError):
    """Bad input from outside: the command line prints it as one line and exits with status 2."""


class UnreadableError(UserError):
    """One picture is broken. Loaders go on without it; elsewhere it is an error as any other."""


class TooSmallError(UnreadableError):
    """One picture is below the size and is to be skipped: loaders go on without it and count it apart."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python's or torch's, says that memory is used up."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def missing_operator(error: BaseException) -> str:
    """What to say of an operator that torch lacks on Apple's GPU; empty for other errors."""
    pattern = r"operator '(\S+?)' is not current\w* \w+ (?:for|on) the MPS|run '(\S+?)' with arguments from the 'MPS'"
    if not isinstance(error, NotImplementedError) or not (found := re.search(pattern, str(error))):
        return ""
    instead = "set PYTORCH_ENABLE_MPS_FALLBACK=1, which computes it on the CPU, or choose the device cpu"
    return f"torch has no operator {found[1] or found[2]} on the device mps: {instead}"


def in_one_line(error: Exception) -> str:
    """What a library says is wrong, without line breaks and cut at 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def brief(value: Any) -> str:
    """What a user handed over, in a few words, whatever it is."""
    try:
        if getattr(value, "shape", ()) and hasattr(value, "dtype"):
            return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        text = " ".join(repr(value).split())
    except Exception:  # of an integer of thousands of digits, or of a class of the user's
        return f"something of type {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."
