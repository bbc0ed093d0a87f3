"""The object store: whole or absent, addressed by content, safe names."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_hub.objects import FolderStore
from skerry_modules.errors import InputError, PeerError, ResourceError


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_what_goes_in_comes_out_by_its_hash(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    data = b"".join(pieces)
    digest = store.put_stream(iter(pieces))
    assert digest == hashlib.sha256(data).hexdigest() == store.put_bytes(data) == store.put_stream(io.BytesIO(data))
    with store.open(digest) as file:
        assert file.read() == data
    assert store.size(digest) == len(data)
    assert list(store.digests()) == [digest]
    assert store.delete(digest)
    assert not store.delete(digest)
    assert not store.exists(digest)


def test_the_wrong_content_is_not_kept(objects: FolderStore) -> None:
    with pytest.raises(PeerError, match="cannot store an object") as caught:
        objects.put_stream(b"other", expected="0" * 64)
    assert caught.value.code == "package.digest_mismatch"
    assert list(objects.digests()) == []
    assert list((objects.folder / "tmp").iterdir()) == []


def test_a_source_that_fails_leaves_nothing(objects: FolderStore) -> None:
    def broken() -> object:
        yield b"some"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        objects.put_stream(broken())  # type: ignore[arg-type]
    assert list(objects.digests()) == []
    assert list((objects.folder / "tmp").iterdir()) == []


def test_the_limit_holds_while_streaming(objects: FolderStore) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(PeerError, match="more than 5000 bytes"):
        objects.put_stream(endless(), limit=5000)  # type: ignore[arg-type]
    assert taken == 6


def test_half_written_files_go_at_the_start(objects: FolderStore) -> None:
    (objects.folder / "tmp" / "left").write_bytes(b"half")
    objects.clean()
    assert list((objects.folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "digest", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 32 + "/" + "0" * 31]
)
def test_only_a_digest_names_an_object(objects: FolderStore, digest: str) -> None:
    with pytest.raises(InputError, match="it is not a SHA-256"):
        objects.open(digest)


@pytest.mark.parametrize("key", ["", "..", "../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", "a/./b", "."])
def test_only_a_plain_path_names_a_file(objects: FolderStore, key: str) -> None:
    for act in (objects.open_key, objects.delete_key, lambda name: objects.put_key(name, b"x")):
        with pytest.raises(InputError):
            act(key)
    assert not (objects.folder.parent / "x").exists()


def test_keys_are_listed_by_prefix_and_replaced_whole(objects: FolderStore) -> None:
    objects.put_key("samples/digits/1.parquet", b"one")
    objects.put_key("samples/vibration/1.parquet", b"two")
    assert objects.put_key("samples/digits/1.parquet", [b"on", b"e!"]) == 4
    assert list(objects.keys("samples/digits/")) == ["samples/digits/1.parquet"]
    assert len(list(objects.keys())) == 2
    with objects.open_key("samples/digits/1.parquet") as file:
        assert file.read() == b"one!"
    assert objects.delete_key("samples/digits/1.parquet")
    with pytest.raises(InputError, match="cannot find the file samples/digits/1"):
        objects.open_key("samples/digits/1.parquet")


def test_the_same_object_may_be_stored_by_many_at_once(objects: FolderStore) -> None:
    data = os.urandom(300_000)
    gate, found = threading.Barrier(8), []

    def one() -> None:
        gate.wait()
        found.append(objects.put_bytes(data))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {hashlib.sha256(data).hexdigest()}
    assert len(found) == 8
    with objects.open(found[0]) as file:
        assert file.read() == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_as_such(objects: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write to /dev/full fails with ENOSPC: the store writes there through a link."""
    monkeypatch.setattr("skerry_hub.objects.secrets.token_hex", lambda _: "full")
    opened = Path.open

    def open_full(self: Path, mode: str = "r", *rest: object) -> object:
        return opened(Path("/dev/full"), "wb") if self.name == "full" else opened(self, mode, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        objects.put_bytes(b"x" * 100_000)
    assert caught.value.code == "resource.no_space"
    assert caught.value.data["free"] >= 0
