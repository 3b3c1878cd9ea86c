"""The survey of a data set, `fqgan data info`; and mistakes on the command lines of `fqgan data`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from packs import Noise, folder, packed, pixels

from fqgan.cli import main
from fqgan.data.order import spread_over_blocks
from fqgan.data.sources import open_source
from fqgan.data.survey import numbers_of

__all__ = ["folder"]  # fixtures

Refused = Callable[..., str]


def test_survey_of_a_folder(folder: Path) -> None:
    (folder / "cat/zz.jpg").write_bytes(b"no picture")
    turned = pixels(0, 30, 50)
    turned.getexif()[0x0112] = 6
    turned.save(folder / "dog/zz.jpg", exif=turned.getexif())  # upright: 50 x 30
    cut = folder / "dog/01.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    numbers = numbers_of(open_source(str(folder)), scan=0, sizes=(25, 256), workers=2)
    sizes = [(20 + 3 * i, 60 - i) for i in range(40)] + [(50, 30)]
    assert (numbers["kind"], numbers["pictures"], numbers["scanned"]) == ("image folder", 42, 42)
    assert numbers["classes"] == {"cat": 21, "dog": 21, "emu": 0}
    assert (numbers["labels"], numbers["unlabelled"], numbers["blocks"]["count"]) == ([0, 1], 0, 1)
    for name, values in (
        ("width", [w for w, _ in sizes]),
        ("height", [h for _, h in sizes]),
        ("shorter_side", list(map(min, sizes))),
    ):
        assert numbers[name] == {"min": min(values), "median": np.median(values), "max": max(values)}
    assert numbers["below"] == {"25": sum(min(size) < 25 for size in sizes), "256": 41}
    assert numbers["formats"] == {"PNG": 14, "JPEG": 14, "WEBP": 13}
    files = [path for path in folder.rglob("*.*") if path.name != "zz.jpg" or path.parent.name == "dog"]
    assert numbers["mean_bytes"] == round(np.mean([path.stat().st_size for path in files]))
    assert [line.split(" is ")[0] for line in numbers["unreadable"]] == [str(folder / "cat/zz.jpg")]
    decoded = numbers_of(open_source(str(folder)), scan=0, decode=True)["unreadable"]
    assert [str(cut) in line for line in decoded] == [False, True], "a file that is cut short has a whole header"


def test_survey_of_other_sources(folder: Path, tmp_path: Path) -> None:
    source = packed(folder, tmp_path / "out", format="jpeg")
    numbers = numbers_of(source, scan=10)
    assert (numbers["kind"], numbers["scanned"], numbers["formats"]) == ("parquet files", 10, {"JPEG": 10})
    numbers = numbers_of(Noise([4, 4], side=30, unreadable=[3]), scan=0, workers=1)
    assert numbers["unreadable"] == ["noise 3 is unreadable"]
    assert (numbers["blocks"]["count"], numbers["formats"], numbers["mean_bytes"]) == (2, {}, None)
    assert (numbers["shorter_side"]["min"], numbers["modes"]) == (30, {"RGB": 7})


def test_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pictures keep their bytes, names and labels, and are seen with their formats."""
    monkeypatch.setenv("HOME", str(tmp_path))
    buffer = io.BytesIO()
    pixels(3, 40, 33).save(buffer, "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("x/a.jpg", buffer.getvalue()), ("x/a.cls", b"4"), ("x/b.jpg", buffer.getvalue()[:-99])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"))
    numbers = numbers_of(source, scan=0, decode=True)
    assert (numbers["kind"], numbers["labels"], numbers["unlabelled"]) == ("WebDataset tars", [4, 4], 1)
    assert (numbers["formats"], numbers["mean_bytes"]) == ({"JPEG": 1}, len(buffer.getvalue()))
    assert len(numbers["unreadable"]) == 1
    assert packed(source, tmp_path / "out", size=100, format="jpeg").labels.tolist() == [4]
    rows = pq.read_table(tmp_path / "out")["image"].to_pylist()
    assert rows == [{"bytes": buffer.getvalue(), "path": "x/a.jpg"}]


@pytest.mark.parametrize(
    ("blocks", "count", "most", "expected"),
    [
        ([10], 0, 4, range(10)),
        ([10], 20, 4, range(10)),
        ([10], 5, 4, [0, 2, 4, 6, 8]),
        ([4, 4, 4, 4], 4, 2, [0, 2, 8, 10]),
        ([4, 4, 4, 4], 3, 2, [0, 8, 10]),
        ([1, 8, 1, 8], 8, 4, [0, 1, 5, 9, 10, 14]),
    ],
)
def test_spread_over_blocks(blocks: list[int], count: int, most: int, expected: Any) -> None:
    assert spread_over_blocks(blocks, count, most) == list(expected)


def test_info_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dog/broken.png").write_bytes(b"x")
    out = tmp_path / "new/info.json"
    assert main(["data", "info", str(folder), "--json", str(out), "--size", "25", "--scan", "0"]) == 0
    text = capsys.readouterr().out
    for words in ("image folder", "3: cat 20, dog 21, emu 0", "0 to 1", "20 to 137", "below 25 px", "broken.png"):
        assert words in text
    assert text.splitlines()[-1] == str(out)
    numbers = json.loads(out.read_text())
    assert (numbers["pictures"], len(numbers["unreadable"])) == (41, 1)
    assert main(["data", "info", str(folder / "cat"), "--scan", "3", "--workers", "0"]) == 0
    assert "3, their headers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name what to do: fqgan data info|pack ..."),
        ("pck x", "cannot do 'pck'; did you mean 'pack'?"),
        ("info", "Missing from fqgan data info: SOURCE"),
        ("info nowhere", "nowhere does not exist"),
        ("info photos --scann 3", "unknown option --scann; did you mean '--scan'?"),
        ("info photos --scan -1", "--scan must be at least 0, got -1"),
        ("info photos --json .", ""),
        ("pack photos", "Missing from fqgan data pack: --out PATH"),
        ("pack photos --out x --qualty 3", "unknown option --qualty; did you mean '--quality'?"),
        ("pack photos --out x --quality 101", "--quality must be at most 100, got 101"),
        ("pack photos --out x --size 0", "--size must be at least 1, got 0"),
        ("pack photos --out x --crop-min 1.5", "--crop-min must be between 0 and 1, got 1.5"),
        ("pack photos --out x --format gif", "invalid choice 'gif' for argument '--format'"),
        ("pack nowhere --out x", "nowhere does not exist"),
        ("pack photos --out file", "--out file is a file: name a folder"),
    ],
)
def test_mistakes(line: str, message: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if "--json ." in line:
        (tmp_path / "x").mkdir()
        line, message = line.replace("--json .", "--json x"), "--json x is a folder: name a file"
    assert message in refused("data", *line.split())
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").iterdir())
