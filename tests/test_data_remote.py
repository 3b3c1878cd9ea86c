"""Remote files and data sets: right bytes through any server, and errors in one line."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from file_server import FileServer, Google
from moto.server import ThreadedMotoServer
from PIL import Image
from remote_files import CONTENT, folder, message, server
from stores import make_store

from fqgan.base.errors import UserError
from fqgan.data import remote, servers
from fqgan.data.loader import evaluation_batches
from fqgan.data.remote import RemoteFile, expand, is_remote, local_copy
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["folder", "server"]  # fixtures


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A client of an object store on this machine, with the bucket `bucket`."""
    patch = pytest.MonkeyPatch()
    store = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    store.stop()
    patch.undo()
    servers._filesystems.clear()  # they go to this store


def test_what_is_remote() -> None:
    for spec in ("s3://bucket/x.tar", "gs://b/x", "gcs://b/x", "http://h/x", "https://h/x.parquet", "memory://x"):
        assert is_remote(spec)
    for spec in ("x.tar", "/a/b", "hf:org/name", "C:\\x", Path("s3:/b"), "s4://b/x", "photos"):
        assert not is_remote(spec)


def test_reads_as_a_local_file_does(server: FileServer) -> None:
    """Random places and sizes, against the bytes themselves; then again, with the server asked for nothing."""
    file, local = RemoteFile(server.url("a.bin")), io.BytesIO(CONTENT)
    assert file.size == len(CONTENT)
    for _ in range(2):
        rng = np.random.default_rng(1)
        for _ in range(200):
            place, size = int(rng.integers(0, 11_000)), int(rng.choice([-1, 0, 1, 7, 999, 1000, 1001, 5000]))
            assert file.seek(place) == local.seek(place)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()
        assert file.pread(20, 995) == CONTENT[995:1015]
        assert file.pread(20, len(CONTENT) - 3) == CONTENT[-3:]
        assert file.pread(20, len(CONTENT)) == b""
        server.files = {}  # from here on, from the cache
    assert file.seek(-3, os.SEEK_END) == len(CONTENT) - 3 and io.BufferedReader(file).read() == CONTENT[-3:]
    with pytest.raises(OSError, match="Invalid argument"):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.pread(1, 0)


def test_missing_blocks_in_a_row_are_one_request(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    file.pread(10, 4500)
    assert file.pread(10_000, 0) == CONTENT[:10_000]
    assert set(server.asked) == {"bytes=0-0", "bytes=4000-4999", "bytes=0-3999", "bytes=5000-9999"}
    assert server.sent == 10_001


def test_an_empty_file(server: FileServer) -> None:
    server.files["empty"] = b""
    assert RemoteFile(server.url("empty")).read() == b""
    assert local_copy(server.url("empty")).read_bytes() == b""


def test_a_server_without_ranges(server: FileServer) -> None:
    """The whole file is there then, and all of it is kept."""
    server.ranges = False
    file = RemoteFile(server.url("a.bin"))
    assert file.pread(50, 4321) == CONTENT[4321:4371]
    server.files = {}
    assert file.read() == CONTENT
    assert local_copy_of(server).read_bytes() == CONTENT


def local_copy_of(server: FileServer) -> Path:
    server.files = {"a.bin": CONTENT}
    return local_copy(server.url("a.bin"))


def test_cut_bodies_are_fetched_again(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    server.cuts = 2
    assert file.pread(3000, 500) == CONTENT[500:3500]
    server.errors = 2
    assert file.pread(3000, 5500) == CONTENT[5500:8500]


def test_bodies_that_are_always_cut_are_an_error(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    server.cuts = 99
    assert "cannot be read" in message(lambda: file.pread(3000, 500))
    assert "cannot be read" in message(lambda: local_copy(server.url("a.bin")))
    server.cuts = 0
    assert file.read() == CONTENT


def test_a_store_that_returns_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error of its own: never silently short data."""
    store = servers.filesystem("memory")
    store.pipe_file("/a.bin", CONTENT)
    file, whole = RemoteFile("memory://a.bin"), type(store).cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, *args, **range: whole(self, *args, **range)[:-1])
    assert "sent 999 bytes of 1000" in message(lambda: file.pread(1, 0))
    monkeypatch.undo()
    assert file.read() == CONTENT


def test_a_changed_file_is_an_error_and_not_mixed(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    assert file.pread(10, 0) == CONTENT[:10]
    for new in (bytes(reversed(CONTENT)), CONTENT[:2000]):
        server.files["a.bin"] = new
        assert "has changed" in message(lambda: file.pread(10, 5000))
        assert RemoteFile(server.url("a.bin")).read() == new
    assert file.pread(10, 0) == CONTENT[:10]


def test_a_changed_file_of_a_store(bucket: Any) -> None:
    bucket.put_object(Bucket="bucket", Key="changing.bin", Body=CONTENT)
    file = RemoteFile("s3://bucket/changing.bin")
    assert file.pread(10, 0) == CONTENT[:10]
    bucket.put_object(Bucket="bucket", Key="changing.bin", Body=bytes(reversed(CONTENT)))
    assert "has changed" in message(lambda: file.pread(10, 5000))


def test_errors_of_web_servers_in_one_line(server: FileServer) -> None:
    started = time.monotonic()
    assert "does not exist: check" in message(lambda: RemoteFile(server.url("missing.tar")))
    assert "may not be read (403" in message(lambda: local_copy(server.url("private")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "cannot be reached" in message(lambda: RemoteFile(f"http://127.0.0.1:{port}/x.tar"))
    assert "host's name is not known" in message(lambda: RemoteFile("http://no-such-host.invalid/x.tar"))
    assert "cannot be read" in message(lambda: RemoteFile("http://"))
    text = message(lambda: RemoteFile(f"http://me:secret@127.0.0.1:{port}/x.tar?signature=secret"))
    assert "secret" not in text
    assert time.monotonic() - started < 5


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_READ", 0.1)
    monkeypatch.setattr(servers, "_filesystems", {})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        assert "no answer" in message(lambda: RemoteFile(url))


def test_errors_of_stores_in_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    assert "does not exist" in message(lambda: RemoteFile("s3://bucket/missing.tar"))
    assert "does not exist" in message(lambda: expand("s3://bucket/missing"))
    assert "does not exist" in message(lambda: expand("s3://missing-bucket/"))
    assert "fits the pattern" in message(lambda: expand("s3://bucket/missing-*.tar"))
    monkeypatch.setattr(servers, "_filesystems", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert "set AWS_PROFILE" in message(lambda: RemoteFile("s3://bucket/missing.tar"))
    monkeypatch.setattr(servers, "_filesystems", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:1")
    assert "cannot be reached" in message(lambda: RemoteFile("s3://bucket/x.tar"))
    assert time.monotonic() - started < 10


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_filesystems", {})
    monkeypatch.setitem(servers.PACKAGES, "s3", "no_such_package")
    assert message(lambda: RemoteFile("s3://bucket/x")) == (
        "s3:// needs the package no_such_package: pip install 'fqgan[remote]'"
    )


def test_expanding_addresses(bucket: Any) -> None:
    for name in (
        "set/b.tar",
        "set/a.tar",
        "set/notes.txt",
        "set/deep/c.tar",
        "mixed/a.tar",
        "mixed/a.parquet",
        "x.npy",
    ):
        bucket.put_object(Bucket="bucket", Key=name, Body=b"x")
    tars = ["s3://bucket/set/a.tar", "s3://bucket/set/b.tar"]
    for spec in ("s3://bucket/set", "s3://bucket/set/", "s3://bucket/set/*.tar", "s3://bucket/set/[ab].tar"):
        assert expand(spec) == tars
    assert expand("s3://bucket/*/a.tar") == ["s3://bucket/mixed/a.tar", "s3://bucket/set/a.tar"]
    assert expand("s3://bucket/x.npy") == ["s3://bucket/x.npy"]
    assert expand("s3://nowhere/x.tar") == ["s3://nowhere/x.tar"]  # opening tells
    assert "name one kind, s3://bucket/mixed/*.parquet" in message(lambda: expand("s3://bucket/mixed/"))
    assert "no parquet file or tar" in message(lambda: expand("s3://bucket/"))
    assert expand("https://h/x.tar?a=*") == ["https://h/x.tar?a=*"]
    for spec in ("https://h/x-*.tar", "https://h/folder/"):
        assert "do not list their files" in message(lambda spec=spec: expand(spec))


def test_parquet_and_tars_from_a_store(bucket: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    table = pa.table({"image": [rng.bytes(300) for _ in range(60)], "label": list(range(60))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for row in range(20):
            member = tarfile.TarInfo(f"{row}.jpg")
            member.size = 300
            archive.addfile(member, io.BytesIO(table["image"][row].as_py()))
    for name in ("x.parquet", "x.tar"):
        bucket.put_object(Bucket="bucket", Key=f"files/{name}", Body=(tmp_path / name).read_bytes())
    with pq.ParquetFile(RemoteFile("s3://bucket/files/x.parquet")) as file:
        assert file.read_row_group(1, use_threads=False).equals(table.slice(20, 20))
        assert file.read().equals(table)
    with tarfile.open(fileobj=RemoteFile("s3://bucket/files/x.tar"), mode="r:") as archive:
        contents = [archive.extractfile(member) for member in archive]
        assert [c.read() for c in contents if c] == table["image"].to_pylist()[:20]
    copy = local_copy("s3://bucket/files/x.tar")
    assert copy.read_bytes() == (tmp_path / "x.tar").read_bytes()


def written(tmp_path: Path) -> dict[str, bytes]:
    """Small parquet files and a tar of pictures, whose label is their grey value."""
    files = {}
    for split, values in (("train-0", [1, 2]), ("train-1", [3]), ("test-0", [4])):
        cells = [{"bytes": picture(value), "path": f"{value}.png"} for value in values]
        pq.write_table(pa.table({"image": cells, "label": values}), tmp_path / "x.parquet")
        files[f"set/{split}.parquet"] = (tmp_path / "x.parquet").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in {"a.png": picture(5), "a.cls": b"5", "b.png": picture(6), "b.cls": b"6"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    files["tars/00000.tar"] = files["tars/00001.tar"] = (tmp_path / "x.tar").read_bytes()
    return files


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def read_whole(spec: str, split: str = "train") -> list[int]:
    """The labels of a set, after its pictures were read in worker processes and found to agree."""
    source = open_source(spec, split)
    for images, labels, _ in evaluation_batches(source, size=8, batch=2, workers=2):
        assert (images == labels[:, None, None, None]).all()
    return source.labels.tolist()


def test_image_sets_of_a_store(bucket: Any, tmp_path: Path) -> None:
    for name, data in written(tmp_path).items():
        bucket.put_object(Bucket="bucket", Key=f"sources/{name}", Body=data)
    root = "s3://bucket/sources"
    assert read_whole(f"{root}/set") == [1, 2, 3]
    assert read_whole(f"{root}/set/*.parquet", "validation") == [4]
    assert read_whole(f"{root}/tars/{{00000..00001}}.tar") == [5, 6, 5, 6]
    with pytest.raises(UserError, match=r"^[^\n]*s3://[^\n]*gone\.tar[^\n]*$"):
        open_source(f"{root}/gone.tar")


def test_image_sets_of_a_web_server(server: FileServer, tmp_path: Path) -> None:
    server.files |= written(tmp_path)
    assert read_whole(server.url("set/train-0.parquet")) == [1, 2]
    assert read_whole(server.url("tars/{00000..00001}.tar")) == [5, 6, 5, 6]
    with pytest.raises(UserError, match="nothing else: copy it"):
        open_source(server.url("set.zip"))


def test_a_token_store_elsewhere(
    bucket: Any, tmp_path: Path, tokenizer: FactorizedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 2**20)
    near = make_store(tmp_path / "store", tokenizer)
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            key = f"stores/{file.relative_to(tmp_path / 'store')}"
            bucket.put_object(Bucket="bucket", Key=key, Body=file.read_bytes())
    far = TokenStore.open("s3://bucket/stores")
    indices = list(range(len(near)))
    for ours, theirs in zip(far.take(indices, [0] * len(near)), near.take(indices, [0] * len(near)), strict=True):
        assert torch.equal(ours, theirs)
    assert far.data_fingerprint() == near.data_fingerprint()
    names = sorted(path.name for path in near.tokenizer_path.iterdir())
    assert sorted(path.name for path in far.tokenizer_path.iterdir()) == names
    assert all((far.tokenizer_path / name).read_bytes() == (near.tokenizer_path / name).read_bytes() for name in names)
    with pytest.raises(UserError, match=r"nowhere/manifest\.json"):
        TokenStore.open("s3://bucket/nowhere")


def test_google_cloud_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileServer({"set/a.tar": CONTENT, "set/b.tar": b"x", "other/c.tar": b"x"}, Google)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{store.server_port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    started = time.monotonic()
    for spec in ("gs://bucket/set/", "gs://bucket/set", "gs://bucket/set/*.tar"):
        assert expand(spec) == ["gs://bucket/set/a.tar", "gs://bucket/set/b.tar"]
    assert RemoteFile("gs://bucket/set/b.tar").read() == b"x"
    file = RemoteFile("gcs://bucket/set/a.tar")
    assert file.pread(3000, 500) == CONTENT[500:3500]
    store.files["set/a.tar"] = bytes(reversed(CONTENT))
    assert "has changed" in message(lambda: file.pread(10, 5000))
    assert "does not exist" in message(lambda: RemoteFile("gs://bucket/missing.tar"))
    assert "gcloud auth" in message(lambda: RemoteFile("gs://private/x.tar"))
    assert time.monotonic() - started < 10
    store.shutdown()
    store.server_close()
