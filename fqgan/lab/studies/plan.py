"""A study is a list of rows, each with its declared difference from its parent. No torch here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig

Run = TypeVar("Run", TokenizerRunConfig, GeneratorRunConfig)
Kind = Literal["tokenizer", "generator"]
RESERVED = ("train.seed", "train.device")
"""What no row may declare: the study sets the seeds, and all rows run on one kind of device."""
WATCHING = {
    *("data.max_unreadable", "data.workers"),
    *(f"train.{name}_every" for name in ("checkpoint", "image", "log", "validate")),
    *("train.device", "train.keep_last", "train.validation_images", "train.wandb", "train.sample_images"),
}
"""Settings in which runs of one study may differ: how they are watched, nothing that they compute."""
_LEFT_OPEN = re.compile(
    r"model\.(codes_of|critic|factors\.\d+\.(spatial_)?teacher_dim|codebook_sizes|grid|num_classes)(\.\d+)?"
)
_PICTURES = "sampling."
_LENGTH = {"train.steps", "train.epochs"}


@dataclass(frozen=True)
class Row:
    """One training run for each seed."""

    name: str
    """Folder name."""
    parent: str = ""
    """Row that it differs from; empty: the study's settings."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key -> value: all in which it differs."""
    config: str = ""
    """A config.json that it is trained with. It must differ from the parent in keys of `changes` only."""
    label: str = ""
    """What tables call it, where it is not one of a study's own."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a row, how far it is trained, and how it is sampled."""

    name: str
    """The row's, and more where it has several lines."""
    row: str
    row_label: str
    at: str = ""
    """What tells the lines of a row apart, in tables."""
    fraction: float = 1.0
    """Of the training's length."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Options of `fqgan generate`, of a generator's line."""
    paper: Mapping[str, float | str] = field(default_factory=dict)
    """The paper's numbers."""

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.row_label}, {self.at}" if self.at else self.row_label


@dataclass(frozen=True)
class Ordering:
    """A claim that one line is better than another."""

    claim: str
    better: str
    worse: str


@dataclass(frozen=True)
class Study:
    """What is trained, measured and judged."""

    name: str
    title: str
    kind: Kind
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    orderings: tuple[Ordering, ...] = ()
    paper: Mapping[str, str] = field(default_factory=dict)
    """Key of the lines' `paper` -> heading of its column."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Of generators' lines, where they don't say otherwise."""

    def fractions(self, row: str) -> list[float]:
        """How far a row is trained when it is measured, rising."""
        return sorted({line.fraction for line in self.lines if line.row == row})

    def only(self, names: Collection[str]) -> Study:
        """The rows of these names, with their lines and orderings. `UserError` for an unknown one."""
        check_rows(names, [row.name for row in self.rows])
        lines = tuple(line for line in self.lines if line.row in names)
        kept = {line.name for line in lines}
        orderings = tuple(o for o in self.orderings if {o.better, o.worse} <= kept)
        return dataclasses.replace(self, lines=lines, orderings=orderings)

    def extended(self, rows: Sequence[Row]) -> Study:
        """With more rows: each is measured and sampled as its parent is, and claimed to be better where both are
        trained to their end. `UserError` for a name that is taken."""
        taken = {row.name for row in self.rows} | {line.name for line in self.lines}
        for row in rows:
            if row.name in taken:
                raise UserError(f"row {row.name!r} is there already: choose another name")
            taken.add(row.name)
        known, lines, claims = {row.name: row for row in (*self.rows, *rows)}, list(self.lines), list(self.orderings)
        for row in _parents_first(rows):
            models = [line for line in lines if line.row == _measured_ancestor(row, known, lines)]
            for model in models or [Line("", "", "", sampling=self.sampling)]:
                name = row.name + model.name.removeprefix(model.row)
                own = {"row": row.name, "row_label": row.label or row.name, "paper": {}}
                own["sampling"] = {**model.sampling, **_declared_sampling(row, models)}
                if model.at and not _LENGTH.isdisjoint(row.changes) and len({each.fraction for each in models}) > 1:
                    own["at"] = f"{model.fraction:g} of its length"
                line = dataclasses.replace(model, name=name, **own)
                if name != row.name and name in taken:
                    raise UserError(f"rows {name!r} and {row.name!r} would have a line of one name: choose another")
                taken.add(name)
                lines.append(line)
                if model.row == row.parent and model.row and model.fraction == 1.0:
                    claims.append(Ordering(f"{line.label} over {model.label}", line.name, model.name))
        return dataclasses.replace(self, rows=(*self.rows, *rows), lines=tuple(lines), orderings=tuple(claims))


def check_rows(names: Collection[str], known: Sequence[str]) -> None:
    """`UserError` for a name that no row has."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown row {name!r}{did_you_mean(name, known)} (rows: {', '.join(known)})")


def _declared_sampling(row: Row, models: Sequence[Line]) -> dict[str, Any]:
    """How a row is to be sampled otherwise than its parent. `UserError` where its parent's lines differ in that, and
    for a config of its own, of which the study takes the training only."""
    found = {}
    for key, value in row.changes.items():
        name = key.removeprefix(_PICTURES)
        if name == key and key != _PICTURES[:-1]:
            continue
        if name == key or row.config:
            raise UserError(
                f"row {row.name} cannot declare {key}: declare sampling.cfg_scale or the like, and no config"
            )
        if len({str(model.sampling.get(name)) for model in models}) > 1:
            raise UserError(f"row {row.name} cannot declare {key}: it is what the lines of its parent differ in")
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def _parents_first(rows: Sequence[Row]) -> list[Row]:
    """In their order, but none before its parent; rows that go round in a circle come last."""
    waiting, found = list(rows), list[Row]()
    while waiting:
        names = {row.name for row in waiting}
        free = [row for row in waiting if row.parent not in names]
        found += free or waiting
        waiting = [row for row in waiting if row not in found]
    return found


def _measured_ancestor(row: Row, rows: Mapping[str, Row], lines: Sequence[Line]) -> str:
    """The nearest ancestor that has lines; empty: none."""
    measured, seen = {line.row for line in lines}, {row.name}
    name = row.parent
    while name and name not in measured:
        seen.add(name)
        name = rows[name].parent if name in rows else ""
        if name in seen:  # a circle, which `settings_of` refuses
            return ""
    return name


def change(config: Run, changes: Mapping[str, Any]) -> Run:
    """A copy of a config with the values at dotted keys replaced. `UserError` for an unknown key or a wrong type."""
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    for key, value in changes.items():
        *path, last = key.split(".")
        place: Any = content
        for step in path:
            place = _entry(place, step, key)
        _entry(place, last, key)
        place[int(last) if isinstance(place, list) else last] = _plain(value)
    return schema.from_dict(type(config), content)


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted key. `UserError` for an unknown one."""
    place: Any = json.loads(json.dumps(dataclasses.asdict(config)))
    for step in key.split("."):
        place = _entry(place, step, key)
    return place


def has_setting(config: Any, key: str) -> bool:
    """Whether there is a value at a dotted key."""
    try:
        value_at(config, key)
    except UserError:
        return False
    return True


def _entry(place: Any, step: str, key: str) -> Any:
    if isinstance(place, dict) and step in place:
        return place[step]
    if isinstance(place, list) and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    nearest = did_you_mean(step, place) if isinstance(place, dict) else ""
    raise UserError(f"there is no setting {key}{nearest}")


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def settings_of(study: Study, base: Run) -> dict[str, Run]:
    """The settings of every row, but for the seed. `UserError` for rows that differ in more than they declare, for
    parents that are unknown or go round in a circle, and for settings that contradict each other."""
    rows = {row.name: row for row in study.rows}
    found: dict[str, Run] = {}

    def resolve(name: str, children: tuple[str, ...]) -> Run:
        if name in found:
            return found[name]
        if name in children:
            raise UserError(f"row {name}: its parents go round in a circle")
        row = rows[name]
        if row.parent and row.parent not in rows:
            raise UserError(f"row {name}: unknown parent {row.parent!r}{did_you_mean(row.parent, rows)}")
        parent = resolve(row.parent, (*children, name)) if row.parent else base
        if reserved := next((key for key in RESERVED if _covers(row.changes, key)), ""):
            raise UserError(f"row {name} cannot declare {reserved}: it is the same in all rows of a study")
        try:
            found[name] = _own(row, parent)
            found[name].check()
        except UserError as error:
            raise UserError(f"row {name}: {error}") from None
        return found[name]

    return {name: resolve(name, ()) for name in rows}


def _own(row: Row, parent: Run) -> Run:
    if not row.config:
        return change(parent, row.changes)
    own = schema.load(type(parent), Path(row.config))
    for key in row.changes:  # one of them may lack it, such as a second factor
        if not has_setting(parent, key):
            value_at(own, key)
    own = change(own, {key: value_at(parent, key) for key in RESERVED})
    if difference := undeclared(parent, own, row.changes):
        raise UserError(f"{row.config} differs from {row.parent or 'the study'} in what is not declared ({difference})")
    return own


def undeclared(expected: Any, found: Any, declared: Collection[str] = (), left_out: Collection[str] = ()) -> str:
    """`key: found, not expected` of all in which two configs differ, but for what lies under the declared keys or is
    only watched; empty if there is nothing. What `expected` leaves open, such as a teacher's dimension, may be filled
    in."""
    differences = []
    for key, (wanted, has) in schema.diff(expected, found).items():
        if key in WATCHING or key in left_out or key.startswith(_PICTURES) or _covers(declared, key):
            continue
        if _LEFT_OPEN.fullmatch(key) and not wanted:
            continue
        differences.append(f"{key}: {has!r}, not {wanted!r}")
    return ", ".join(differences)


def _covers(declared: Collection[str], key: str) -> bool:
    """Whether a key, or one that it lies under, is declared."""
    return any(f"{key}.".startswith(f"{name}.") for name in declared)


def ancestry(study: Study, name: str) -> list[Row]:
    """A row, its parent, and so on."""
    rows = {row.name: row for row in study.rows}
    found = [rows[name]]
    while found[-1].parent:
        found.append(rows[found[-1].parent])
    return found


def load_rows(path: Path) -> list[Row]:
    """Rows of a JSON file: {"rows": [{"name": ..., "parent": ..., "changes": {...}, "label": ...}, ...]}. A row with
    `config`, a config.json, is trained with that; `changes` then has the keys in which it may differ."""
    content = schema.load_json(path)
    known = {each.name for each in dataclasses.fields(Row)}
    rows = []
    entries = content.get("rows")
    for entry in entries if isinstance(entries, list) and entries else [{}]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f'{path}: "rows" must be a list of objects with a name')
        name = entry["name"]
        if unknown := next((key for key in entry if key not in known), ""):
            raise UserError(f"{path}: row {name}: unknown key {unknown!r}{did_you_mean(unknown, known)}")
        if not re.fullmatch(r"[\w+-][\w.+-]*", name):
            raise UserError(
                f"{path}: a row's name is a folder's: letters, digits and _ + -, and . but not first, got {name!r}"
            )
        if not isinstance(entry.get("changes", {}), dict):
            raise UserError(f"{path}: row {name}: changes must be an object of dotted keys and values")
        if not all(isinstance(entry.get(key, ""), str) for key in ("parent", "config", "label")):
            raise UserError(f"{path}: row {name}: parent, config and label must be texts")
        rows.append(Row(**entry))
    return rows
