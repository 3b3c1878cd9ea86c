"""CONTRIBUTING.md is true: a line for every file, rooms in their order, and no file that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from test_imports import LAYERS, ROOT

HOME = ROOT.parent
PAGE = (HOME / "CONTRIBUTING.md").read_text()
TOP = f"{ROOT.name}/"
MAP = re.split(r"^```\n", PAGE.split("## The map")[1], flags=re.MULTILINE)[1].splitlines()


def entries() -> list[str]:
    """Paths in the map, relative to the package: a folder's end in a slash."""
    found: list[str] = []
    folders = {0: ""}
    for line in MAP:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = "" if name == TOP else folders[depth] + name
        if name.endswith("/"):
            folders[depth + 1] = path
        found.append(path or "./")
    return found


def is_bare(path: Path) -> bool:
    """Whether a file holds no code, but its description at most."""
    body = ast.parse(path.read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_every_file_has_one_line_and_every_line_a_file() -> None:
    files = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or not is_bare(path)]
    folders = {path.parent for path in files}
    tree = {str(path.relative_to(ROOT)) for path in files} | {f"{path.relative_to(ROOT)}/" for path in folders}
    assert sorted(entries()) == sorted(tree)


def test_the_rooms_stand_in_the_order_of_their_layers() -> None:
    rooms = [line.split()[0] for line in MAP if not line.startswith(" ")]
    assert rooms == [TOP if layer == "." else f"{layer}/" for layer in LAYERS]


def test_every_line_says_something_in_one_column() -> None:
    assert {len(line) - len(re.sub(r"^ *\S+ +(?=\S)", "", line)) for line in MAP} == {27}
    assert all(len(line) <= 120 for line in MAP)


def test_every_file_that_the_text_names_exists() -> None:
    """NAME stands for a name of the reader's own."""
    paths = set(re.findall(r"`([\w./]+\.(?:py|md))`", PAGE))
    missing = {path for path in paths if "NAME" not in path and not any((d / path).is_file() for d in (ROOT, HOME))}
    assert len(paths) > 40 and not missing
    assert all((ROOT / path).parent.is_dir() for path in paths if "NAME" in path)


def test_the_numbers_of_the_walks_are_those_of_their_files() -> None:
    section = PAGE.split("### Walks")[1].split("\n## ")[0].split("\n- ")[1:]
    walks = [item.split("Open\n  these only")[0] for item in section]
    counts = [len(re.findall(r"`[\w/]+\.py`", walk)) for walk in walks]
    written = [re.search(r"\((\d+)", walk) for walk in walks]
    assert [int(match[1]) for match in written if match] == counts == [6, 7, 13, 6]
    assert f"{counts[0] + counts[1]} in all" in walks[1]


def test_a_word_has_one_meaning() -> None:
    words = re.findall(r"^\| ([a-z ]+) \| ", PAGE.split("## The words")[1].split("\n## ")[0], re.MULTILINE)
    assert words[0] == "word" and len(words) == len(set(words)) > 25
