"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fqgan.base.files import make_folder, write_text

Rows = Sequence[Sequence[str]]


def file_stem(name: str) -> str:
    """The part of files' names that stands for a model of this name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A pipe table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_TEX |= {"–": "--", "†": r"$\dagger$", "λ": r"$\lambda$"} | {c: f"\\{c}" for c in "&%$#_{}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}


def latex(head: Sequence[str], rows: Rows, caption: str) -> str:
    """A table that needs the package booktabs; the first column is text, the others are numbers."""

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join("".join(_TEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    return "\n".join(
        [
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{''.join(_TEX.get(c, c) for c in caption)}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            "    \\toprule",
            line(head),
            "    \\midrule",
            body,
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}\n",
        ]
    )


@dataclass(frozen=True)
class Table:
    """What a study writes beside its pictures."""

    title: str
    head: Sequence[str]
    rows: Rows
    data_head: Sequence[str]
    data: Sequence[Sequence[object]]
    """The numbers in full, under `data_head`."""
    notes: str

    def write(self, folder: Path) -> list[Path]:
        """`table.md` with the notes below the table, `table.csv` with the data, `table.tex`; returns them."""
        make_folder(folder)
        data = io.StringIO()  # RFC 4180, with line feeds
        csv.writer(data, lineterminator="\n").writerows([self.data_head, *self.data])
        contents = {
            "table.md": f"# {self.title}\n\n{markdown(self.head, self.rows)}\n\n{self.notes.strip()}\n",
            "table.csv": data.getvalue(),
            "table.tex": latex(self.head, self.rows, self.title),
        }
        for name, text in contents.items():
            write_text(folder / name, text)
        return [folder / name for name in contents]
