"""What lies where in a tar of the WebDataset layout: found once from its headers, and kept."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading
from fqgan.base.schema import entry, is_number, parse_json
from fqgan.data.remote import RemoteFile
from fqgan.data.sources.base import Findings
from fqgan.data.sources.labels import LARGEST, columns_by_name
from fqgan.data.sources.listing import CAPTION_COLUMNS, LABEL_COLUMNS
from fqgan.data.sources.npz import read_array
from fqgan.data.sources.place import KINDS, count_ignored, extension_of, is_system

_FORMAT = 3  # of a cached index
_CAPTIONS = ("txt", "caption", "text")
_LABELS = ("cls", "label")
_PADDING = 2**20  # bytes of a header at most, and of what is looked at behind the end mark: tars are filled up
_LONGEST = 2**26  # bytes of a member that is no picture
_LONGEST_NAME = 4096


class TarIndex(NamedTuple):
    """The samples of one tar: where their pictures lie in the file, in bytes, and what else they hold."""

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    """-1: none, or a name."""
    words: npt.NDArray[np.bytes_]
    """Labels that are names."""
    captions: npt.NDArray[np.int64]
    """(n, 3): place and size of the member that holds the caption, and 1 if that is JSON; size 0: none."""
    findings: npt.NDArray[np.bytes_]
    """As JSON: what was ignored, merged and warned of."""


def index_of(tar: str | RemoteFile, label_key: str) -> TarIndex:
    """The index of a tar, from the cache if it is there."""
    path = tar.name if isinstance(tar, RemoteFile) else tar
    if isinstance(tar, RemoteFile):
        size, key = tar.size, f"{_FORMAT} {label_key} {tar.url} {tar.version}"
    else:
        with reading(path, "a tar"):
            status = os.stat(path)
        state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        size, key = status.st_size, f"{_FORMAT} {label_key} {os.path.realpath(path)} {state}"
    cached = Path("~/.cache/fqgan/tar-index").expanduser() / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npz"
    with suppress(UserError):  # missing, or odd
        return _kept(cached, size)
    index = _scan(tar, label_key)
    with suppress(OSError):  # a cache that cannot be written costs time only
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".{os.getpid()}-{cached.name}")
        np.savez(temporary, **index._asdict())
        temporary.replace(cached)
    return index


def _kept(cached: Path, size: int) -> TarIndex:
    """A cached index of a tar of `size` bytes. `UserError` for what is none, or cannot be of that tar."""
    index = TarIndex(**{name: read_array(cached, name) for name in TarIndex._fields})
    if not _fits(index, size):
        raise UserError(f"{cached} is no index of this tar")
    said = parse_json(index.findings.tobytes(), cached)
    counts = [*entry(said, "ignored", dict, cached).values(), said.get("merged"), said.get("without")]
    warnings = entry(said, "warnings", list, cached)
    if not all(is_number(count) for count in counts) or not all(isinstance(each, str) for each in warnings):
        raise UserError(f"{cached} says nothing that is understood")
    return index


def _fits(index: TarIndex, size: int) -> bool:
    """Whether arrays can be those of a tar of `size` bytes."""
    count = len(index.names) if index.names.ndim else -1
    shapes = [(count,)] * 5 + [(count, 3), ()]
    if [each.dtype.kind for each in index] != list("SiiiSiS") or [each.shape for each in index] != shapes:
        return False
    starts = np.concatenate([index.offsets, index.captions[:, 0]])
    lengths = np.concatenate([index.sizes, index.captions[:, 1]])
    # members begin on whole blocks, and one ends before the next begins; hard links are the same one
    within = (starts >= 0) & (starts % tarfile.BLOCKSIZE == 0) & (lengths >= 0) & (lengths <= size - starts)
    order = np.lexsort((lengths, starts))
    steps, longer = np.diff(starts[order]), np.diff(lengths[order])
    if not within.all() or not ((steps == 0) & (longer == 0) | (steps >= lengths[order][:-1])).all():
        return False
    return bool(((index.labels >= -1) & (index.labels < LARGEST)).all())


def _scan(tar: str | RemoteFile, label_key: str) -> TarIndex:
    """Read the headers and labels of a tar."""
    findings = Findings()
    path = tar.name if isinstance(tar, RemoteFile) else tar
    rows: list[tuple[bytes, int, int, int, bytes, tuple[int, int, int]]] = []
    with _opened(tar) as file:
        for sample in _samples(_resolved(_members(file, path), findings), path, findings):
            picture = _picture(sample, findings)
            if picture is None:
                findings.without_picture += 1
                count_ignored((member.name for member in sample.values()), findings)
                continue
            name = picture.name.encode("utf-8", "surrogateescape")
            number, word, caption = _texts_of(file, sample, path, label_key)
            rows.append((name, picture.offset_data, picture.size, number, word, caption))
    names, offsets, sizes, numbers, words, captions = zip(*rows, strict=True) if rows else ((), (), (), (), (), ())
    said = {"ignored": findings.ignored, "merged": findings.merged, "without": findings.without_picture}
    return TarIndex(
        np.array(names, dtype=np.bytes_),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(numbers, dtype=np.int64),
        np.array(words, dtype=np.bytes_),
        np.array(captions, dtype=np.int64).reshape(-1, 3),
        np.array(json.dumps({**said, "warnings": findings.warnings}).encode()),
    )


def _members(file: _Bytes, path: str) -> list[tarfile.TarInfo]:
    """All members of a tar, as its headers tell of them."""
    members: list[tarfile.TarInfo] = []
    with reading(path, "a tar"), tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as archive:
        for member in archive:
            plain = member.isreg() and not member.issparse()
            beyond = plain and not 0 <= member.size <= file.size - member.offset_data
            # back to where the reading has been, it would go on without end
            if beyond or archive.offset <= member.offset or len(member.name) > _LONGEST_NAME:
                raise tarfile.ReadError(f"the header of {member.name[:100]} promises {member.size} bytes")
            members.append(member)
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any end for the end
            raise tarfile.ReadError("its end mark is missing")
        if file.read(_PADDING).strip(b"\0"):
            raise UserError(f"{path} holds more behind its end mark, as tars do that were joined with cat: unpack each")
    return members


def add(findings: Findings, index: TarIndex) -> None:
    """Add what one tar's index says to the findings of all."""
    said = json.loads(index.findings.tobytes())
    findings.ignored.update(said["ignored"])
    findings.merged += said["merged"]
    findings.without_picture += said["without"]
    for warning in said["warnings"]:
        findings.warn(warning)


def _resolved(members: list[tarfile.TarInfo], findings: Findings) -> Iterator[tarfile.TarInfo]:
    """The files among the members; a hard link, as tar writes for the second name of a file, stands for that file."""
    files = {member.name: member for member in members if member.isreg() and not member.issparse()}
    for member in members:
        if member.issparse():  # its bytes stand in pieces
            findings.ignored["sparse files in tars"] += 1
        elif member.isreg():
            yield member
        elif member.islnk() and (target := files.get(member.linkname)):
            linked = copy.copy(target)
            linked.name, linked.offset = member.name, member.offset
            yield linked
        elif not member.isdir():
            findings.ignored["links and devices in tars"] += 1


def _samples(members: Iterable[tarfile.TarInfo], path: str, findings: Findings) -> list[dict[str, tarfile.TarInfo]]:
    """The samples of a tar as extension -> member, in the order of their first members. Hidden and system files belong
    to none, nor do files without a dot and the tar's own notes, such as `__index__/...`.

    A name is cut at its first dot. Names that hold dots themselves (`IMG.0001.jpg`, `v1.0_7.png`) are cut at their
    last: those of a key under which no member has a plain extension, unless all keys of the tar have the same ones.
    """
    groups: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for member in members:
        stem, extension = _key(member.name)
        if not stem:
            findings.ignored["files that belong to no sample"] += 1
            continue
        groups.setdefault(stem, []).append((extension, member))
    layouts = {frozenset(extension for extension, _ in group) for group in groups.values()}
    uniform = len(layouts) == 1 and len(groups) > 1
    last: dict[str, tuple[str, int]] = {}  # key -> the sample that its latest member joined, and when
    samples: list[dict[str, tarfile.TarInfo]] = []
    current: dict[str, int] = {}
    number = 0
    for stem, group in groups.items():
        middles = {extension.rpartition(".")[0] for extension, _ in group}
        words = uniform and len(middles) > 1 and not all(map(str.isdecimal, middles))  # such as input.png, target.png
        dotted = not words and "" not in middles
        for extension, member in group:
            key, own = (
                (f"{stem}.{extension.rpartition('.')[0]}", extension.rpartition(".")[2])
                if dotted
                else (stem, extension)
            )
            number = current.get(key, -1)
            if number >= 0 and own in samples[number]:
                if samples[number][own].name == member.name and last[key][1] == samples[number][own].offset:
                    raise UserError(f"{path} holds {member.name} twice in one sample")
                number = -1  # the numbering starts anew, as in tars that were joined
            if number < 0:
                samples.append({})
                number = current[key] = len(samples) - 1
            samples[number][own] = member
            last[key] = own, member.offset
    samples.sort(key=lambda sample: min(member.offset for member in sample.values()))
    findings.merged += _apart(samples)
    return samples


def _apart(samples: list[dict[str, tarfile.TarInfo]]) -> int:
    """How many samples have members of others between their own."""
    owner = sorted((member.offset, number) for number, sample in enumerate(samples) for member in sample.values())
    runs = Counter(number for i, (_, number) in enumerate(owner) if not i or owner[i - 1][1] != number)
    return sum(count > 1 for count in runs.values())


def _key(name: str) -> tuple[str, str]:
    """Path of a member -> (path up to the first dot of the file name, the rest in lower case), or empty texts."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot or re.match("__[^/]*__/", name) or any(map(is_system, filter(None, folder.split("/")))):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _picture(sample: dict[str, tarfile.TarInfo], findings: Findings) -> tarfile.TarInfo | None:
    """A sample's picture: `x.jpg` rather than `x.mask.jpg`."""
    names = [name for name in sample if KINDS.get(extension_of(f".{name}")) == "picture"]
    if len(names) > 1:
        findings.ignored["further pictures of samples"] += len(names) - 1
        chosen = min(names, key=lambda name: name.count("."))
        others = sorted(set(names) - {chosen})
        findings.warn(f"samples hold several pictures: .{chosen} is read, .{' .'.join(others[:3])} not")
    return sample[min(names, key=lambda name: name.count("."))] if names else None


def _texts_of(
    file: _Bytes, sample: dict[str, tarfile.TarInfo], path: str, label_key: str
) -> tuple[int, bytes, tuple[int, int, int]]:
    """The label of a sample as a number (-1: none) and as a name, and where its caption lies."""
    value: Any = None
    caption = (0, 0, 0)
    for extension in ("json", *_LABELS):
        if not (member := sample.get(extension)):
            continue
        if member.size > _LONGEST:
            raise UserError(f"{path}: {member.name} has {member.size:,} bytes: no label")
        data = file.pread(member.size, member.offset_data)
        if extension in _LABELS:
            text = data.decode("utf-8", "replace").strip()
            value = float(text) if re.fullmatch(r"-?[0-9]+(\.0+)?", text) else text or value
            continue
        content = parse_json(data, f"{path}: {member.name}")
        if not isinstance(content, dict):
            value = content if type(content) is int else value  # a list is no label
            continue
        keys = [label_key] if label_key else columns_by_name(list(content), LABEL_COLUMNS)
        value = next((content[key] for key in keys if content.get(key) is not None), value)
        if columns_by_name(list(content), CAPTION_COLUMNS):
            caption = (member.offset_data, member.size, 1)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    for extension in _CAPTIONS:
        if (member := sample.get(extension)) and member.size:
            caption = (member.offset_data, member.size, 0)
    if isinstance(value, str) and value.isprintable() and len(value) < 1000:
        return -1, value.encode(), caption
    if value is not None and (type(value) is not int or not -1 <= value < 2**31):
        name = next(iter(sample.values())).name
        raise UserError(f"{path}: the label of {name} must be a number from 0 on or a name, not {value!r:.40}")
    return -1 if value is None else value, b"", caption


class _Bytes:
    """What a tar holds, as `tarfile` reads it: no number of a header, however large, goes beyond the end or takes
    memory, and no header is such that looking through it takes minutes."""

    def __init__(self, size: int, pread: Callable[[int, int], bytes]) -> None:
        self.size, self.pread, self._position = size, pread, 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int) -> None:
        self._position = max(0, offset)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _PADDING:
            raise tarfile.ReadError(f"a header promises {size} bytes")
        data = self.pread(size, self._position) if self._position < self.size else b""
        self._position += len(data)
        if re.search(rb"[0-9]{1000}", data):
            raise tarfile.ReadError("a header holds a number of more than 1000 digits")
        return data


@contextmanager
def _opened(tar: str | RemoteFile) -> Iterator[_Bytes]:
    if isinstance(tar, RemoteFile):
        yield _Bytes(tar.size, tar.pread)
        return
    size = check_file(Path(tar))
    with reading(tar, "a tar"):
        file = open(tar, "rb", buffering=0)  # noqa: SIM115
    with file:
        yield _Bytes(size, partial(os.pread, file.fileno()))
