"""Blobs: what is stored is there for good, as long as it is young, and whole."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from durable_celery.codec import Blobs, Codec, FileBlobs, Offload, Place, RedisBlobs
from durable_celery.errors import CodecError, ConfigurationError

PLACE = Place("w-1", "call", 3)
DATA = b"x" * 100
KEY = sha256(DATA).hexdigest()
WEEK = timedelta(days=7)


class Dictionary:
    """The smallest implementation."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def __repr__(self) -> str:
        return "Dictionary()"


@pytest.fixture(params=["dictionary", "files", "redis"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "redis":
        yield RedisBlobs(request.getfixturevalue("redis_url"), ttl=timedelta(minutes=5))
    else:
        yield Dictionary() if request.param == "dictionary" else FileBlobs(tmp_path / "blobs")


def test_what_was_stored_is_given_back_and_may_be_stored_again(blobs: Blobs) -> None:
    assert blobs.get(KEY) is None
    for _ in range(2):
        blobs.put(KEY, DATA)
        assert blobs.get(KEY) == DATA


def test_large_payloads_are_stored_outside_and_small_ones_stay(blobs: Blobs) -> None:
    codec = Codec(chain=[Offload(blobs, above=1000)])
    assert codec.encode("y" * 998, "v", PLACE) == f'"{"y" * 998}"'
    large = "z" * 100_000

    text = codec.encode(large, "v", PLACE)

    assert text.startswith("~ref~")
    assert len(text) < 150
    assert codec.is_reference(text)
    assert not codec.is_reference('"small"')
    assert codec.decode(text, PLACE) == large


def test_equal_payloads_are_one_file(tmp_path: Path) -> None:
    codec = Codec(chain=[Offload(FileBlobs(tmp_path), above=10)])
    texts = {codec.encode("once" * 100, "v", Place("w", "call", number)) for number in range(5)}
    assert len(texts) == 1
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_file_is_replaced_where_one_of_another_size_is_in_its_place(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    blobs.put(KEY, DATA)
    path = tmp_path / KEY[:2] / KEY
    path.write_bytes(DATA[:50])

    blobs.put(KEY, DATA)

    assert path.read_bytes() == DATA


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    codec = Codec(chain=[Offload(FileBlobs(tmp_path), above=10)])

    with pytest.raises(CodecError, match=r"codec ref failed to encode it .*No space left on device"):
        codec.encode("x" * 100, "v", PLACE)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_file_has_its_name_only_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    plain_sync, plain_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        steps.append("fsync")
        plain_sync(handle)

    def replace(path: Path, to: Path) -> Path:
        steps.append("rename")
        return plain_replace(path, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)

    FileBlobs(tmp_path).put(KEY, DATA)

    # The file, then its name, then the folder that has the name, and the folder of that.
    assert steps == ["fsync", "rename", "fsync", "fsync"]


def test_readers_see_whole_blobs_only(tmp_path: Path) -> None:
    blobs, seen, done = FileBlobs(tmp_path), set[bytes | None](), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(blobs.get(KEY))

    reader = threading.Thread(target=read)
    reader.start()
    path = tmp_path / KEY[:2] / KEY
    for _ in range(200):
        blobs.put(KEY, DATA)
        path.unlink()
    done.set()
    reader.join()
    assert seen <= {None, DATA}


def test_old_files_are_deleted_and_those_that_were_stored_again_are_not(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    long_ago = time.time() - 2 * WEEK.total_seconds()
    keys = [sha256(bytes([number])).hexdigest() for number in range(3)]
    for key in keys:
        blobs.put(key, DATA)
        os.utime(tmp_path / key[:2] / key, (long_ago, long_ago))
    blobs.put(keys[1], DATA)
    # What a killed process left of a write.
    left = tmp_path / keys[0][:2] / ".unfinished"
    left.write_bytes(b"x")
    os.utime(left, (long_ago, long_ago))

    assert blobs.remove_older_than(WEEK) == 3

    assert [blobs.get(key) for key in keys] == [None, DATA, None]
    assert not left.exists()


def test_file_that_becomes_young_while_it_is_being_deleted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = FileBlobs(tmp_path)
    blobs.put(KEY, DATA)
    path = tmp_path / KEY[:2] / KEY
    os.utime(path, (1, 1))
    rename = Path.rename

    def stored_meanwhile(self: Path, to: Path) -> Path:
        if self == path:
            blobs.put(KEY, DATA)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stored_meanwhile)

    assert blobs.remove_older_than(WEEK) == 0
    assert blobs.get(KEY) == DATA


def test_blobs_in_redis_end_with_their_time_which_begins_anew_when_they_are_stored(redis_url: str) -> None:
    import redis

    client: Any = redis.Redis.from_url(redis_url)
    blobs = RedisBlobs(redis_url, ttl=timedelta(seconds=100), prefix="mine:")
    blobs.put(KEY, DATA)
    assert 99_000 < int(client.pttl(f"mine:{KEY}")) <= 100_000
    client.pexpire(f"mine:{KEY}", 5000)
    blobs.put(KEY, DATA)
    assert int(client.pttl(f"mine:{KEY}")) > 99_000
    RedisBlobs(redis_url, prefix="for ever:").put(KEY, DATA)
    assert client.pttl(f"for ever:{KEY}") == -1
    client.close()


def test_password_of_a_redis_stands_in_no_message() -> None:
    assert repr(RedisBlobs("redis://user:secret@blobs.shop:6380/2")) == "RedisBlobs('blobs.shop:6380/2')"


def test_missing_blob_is_named_with_the_place_that_was_looked_in() -> None:
    blobs = Dictionary()
    codec = Codec(chain=[Offload(blobs, above=10)])
    text = codec.encode("x" * 100, "v", PLACE)
    (key,) = blobs.kept
    blobs.kept.clear()

    with pytest.raises(CodecError, match=rf"call of w-1/1\.3\): .*blob {key} \(102 bytes\) is not in Dictionary\(\)"):
        codec.decode(text, PLACE)


def test_changed_blob_is_refused() -> None:
    blobs = Dictionary()
    codec = Codec(chain=[Offload(blobs, above=10)])
    text = codec.encode("x" * 100, "v", PLACE)
    blobs.kept = dict.fromkeys(blobs.kept, b'"another"')

    with pytest.raises(CodecError, match="was changed: it has another digest"):
        codec.decode(text, PLACE)


@pytest.mark.parametrize("forged", [b"", b"../../etc/passwd:12", b"0" * 64, b"0" * 64 + b":x", b"A" * 64 + b":1"])
def test_reference_that_is_none_reaches_no_place(forged: bytes) -> None:
    class Nobody(Dictionary):
        def get(self, key: str) -> bytes | None:
            raise AssertionError(key)

    with pytest.raises(ValueError, match="no reference"):
        Offload(Nobody()).decode(forged, PLACE)


@pytest.mark.parametrize(("blobs", "above"), [(object(), 1), (None, 1), (Dictionary(), -1)])
def test_what_cannot_be_set_up_is_refused_at_once(blobs: Blobs, above: int) -> None:
    with pytest.raises(ConfigurationError, match="Offload: "):
        Offload(blobs, above=above)
