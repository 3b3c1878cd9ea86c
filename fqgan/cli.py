"""The command table. Commands are imported when they are called."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from importlib import import_module

from fqgan import __version__
from fqgan.base.errors import UserError, in_one_line, missing_operator, out_of_memory
from fqgan.base.files import SURROUNDINGS, reason
from fqgan.base.printing import refuse, say, steady_streams
from fqgan.base.ranks import ranks_or_one
from fqgan.base.schema import did_you_mean

COMMANDS = {
    "quickstart": "train, evaluate and show a small tokenizer, in minutes on a laptop",
    "demo": "reconstruct and generate with the quickstart's models, in seconds",
    "train-tokenizer": "train a tokenizer from a preset, or resume a run",
    "train-generator": "train a generator on a token store, or resume a run",
    "train-classifier": "train a small classifier, whose features measure images",
    "plan": "what a run takes on given GPUs: memory, time and disk, before it is started",
    "reconstruct": "pictures through a tokenizer and back, each factor alone",
    "extract": "a set of images as codes in a token store, for a generator's training",
    "redraw": "a token store with a share of the codes drawn by a generator, for a decoder's post-training",
    "generate": "pictures by class from a generator",
    "edit": "a picture with a factor or a region drawn again, or a factor of another picture",
    "serve": "tokenizers and generators behind a web server, with a page",
    "convert": "released files to folders with a model card and back; runs to such folders",
    "data": "what is in a set of images; pack one into resized parquet shards",
    "evaluate": "metrics of a tokenizer, a generator or any two sets of images",
    "study": "the paper's tables and figures: train, measure and compare what they hold",
    "doctor": "what a bug report needs; whether a device computes as the CPU does",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (2: a user's error, told in one line; 1: a command's own, of doctor)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if sys.platform == "win32":
            raise UserError("fqgan runs on Linux and macOS, not on Windows itself: install it in WSL 2")
        if not _is_somewhere():
            raise UserError("the current folder is gone: change to one that is there")
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_help())
        elif argv[0] in ("-V", "--version"):
            say(f"fqgan {__version__}")
        elif argv[0] not in COMMANDS:
            raise UserError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; see fqgan --help")
        else:
            return import_module(f"fqgan.commands.{argv[0].replace('-', '_')}").main(argv[1:]) or 0
    except UserError as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except (MemoryError, RuntimeError) as error:
        if missing := missing_operator(error):
            return refuse(missing)
        if not out_of_memory(error):
            raise
        return refuse(f"out of memory ({in_one_line(error)}): smaller pictures, batches or models need less")
    except OSError as error:  # the last net: what writes files says more
        if error.errno not in SURROUNDINGS:
            raise
        return refuse(f"{error.filename or 'a file'}: {reason(error.errno)}")
    return 0


def run() -> None:
    """The console script: `main`, then the end of the process with its status."""
    steady_streams()
    try:
        status = main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    if ranks_or_one().size > 1:
        # gloo's threads may outlive the process group, and one that lets go of a tensor while the interpreter is torn
        # down aborts the process (pytorch#179291): a rank whose work is done would count as failed
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _is_somewhere() -> bool:
    """Whether there is a current folder; where it was deleted, libraries end the process in ways of their own."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _help() -> str:
    rows = "\n".join(f"  {name:<18}{text}" for name, text in COMMANDS.items())
    about = "Factorized visual tokenization and generation."
    return f"usage: fqgan COMMAND ...\n\n{about}\n\n{rows}\n\nfqgan COMMAND --help says more."
