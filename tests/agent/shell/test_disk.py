"""The store: chunks as they come, power cuts, damage, and no space."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.shell.daemon import module_folder
from skerry_agent.disk import Disk
from skerry_modules.chunks import CHUNK_BYTES, count
from skerry_modules.errors import PeerError, ResourceError
from skerry_modules.package import Index, build_index, digest_of, index_bytes, read_folder

SIZE = 3 * CHUNK_BYTES + 1000
DATA = bytes(range(256)) * (SIZE // 256) + b"tail" * 250
DATA = DATA[:SIZE]
DIGEST = hashlib.sha256(DATA).hexdigest()


def piece(part: int, data: bytes = DATA) -> bytes:
    return data[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES]


def make(folder: Path, free: int = 10**12, reserve_mb: int = 0) -> Disk:
    disk = Disk(folder, reserve_mb=reserve_mb, sync_chunks=2, free=lambda _: free)
    disk.prepare()
    return disk


def fill(disk: Disk, digest: str, data: bytes) -> None:
    for part in range(count(len(data))):
        disk.store_chunk(digest, part, len(data), piece(part, data))
    disk.complete(digest, len(data))


def test_chunks_in_any_order_make_the_object(tmp_path: Path) -> None:
    disk = make(tmp_path)
    for part in (3, 1, 0, 2, 1):
        disk.store_chunk(DIGEST, part, SIZE, piece(part))
    assert disk.parts(DIGEST, SIZE) == [0, 1, 2, 3]
    disk.complete(DIGEST, SIZE)
    assert (disk.objects / DIGEST).read_bytes() == DATA
    assert not list(disk.partial.iterdir())
    assert disk.prepare().complete == {DIGEST}
    disk.complete(DIGEST, SIZE)  # twice is fine


@settings(max_examples=40, deadline=None)
@given(
    stored=st.lists(st.integers(0, 3), unique=True),
    damage=st.lists(st.tuples(st.sampled_from(["data", "map"]), st.integers(0, SIZE - 1), st.integers(1, 255))),
    cut=st.one_of(st.none(), st.integers(0, SIZE)),
)
def test_after_a_restart_only_chunks_whose_bytes_are_right_count(
    tmp_path_factory: pytest.TempPathFactory,
    stored: list[int],
    damage: list[tuple[str, int, int]],
    cut: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    disk = make(folder)
    for part in stored:
        disk.store_chunk(DIGEST, part, SIZE, piece(part))
    disk.close()
    for which, place, flip in damage:
        path = disk.partial / (DIGEST if which == "data" else f"{DIGEST}.map")
        data = bytearray(path.read_bytes()) if path.exists() else bytearray()
        if data:
            data[place % len(data)] ^= flip
            path.write_bytes(data)
    if cut is not None and (disk.partial / DIGEST).exists():
        os.truncate(disk.partial / DIGEST, min(cut, (disk.partial / DIGEST).stat().st_size))
    again = make(folder)
    held = again.parts(DIGEST, SIZE)
    assert set(held) <= set(stored)
    assert damage or cut is not None or set(held) == set(stored)
    for part in set(range(4)) - set(held):
        again.store_chunk(DIGEST, part, SIZE, piece(part))
    again.complete(DIGEST, SIZE)
    assert (again.objects / DIGEST).read_bytes() == DATA


def test_an_object_with_another_content_is_refused_and_gone(tmp_path: Path) -> None:
    disk = make(tmp_path)
    wrong = bytearray(DATA)
    wrong[70000] ^= 1
    for part in range(4):
        disk.store_chunk(DIGEST, part, SIZE, piece(part, bytes(wrong)))
    with pytest.raises(PeerError, match="what arrived has another SHA-256") as caught:
        disk.complete(DIGEST, SIZE)
    assert caught.value.code == "package.digest_mismatch"
    assert disk.parts(DIGEST, SIZE) == []
    assert not (disk.objects / DIGEST).exists()


def test_a_chunk_that_was_never_stored_costs_only_itself(tmp_path: Path) -> None:
    """A full disk can refuse the last chunk after the downloader counted it: the others must not go with it."""
    disk = make(tmp_path)
    for part in (0, 1, 2):
        disk.store_chunk(DIGEST, part, SIZE, piece(part))
    with pytest.raises(ResourceError, match="a chunk of it was not stored") as caught:
        disk.complete(DIGEST, SIZE)
    assert caught.value.code == "resource.no_space"
    assert disk.parts(DIGEST, SIZE) == [0, 1, 2]
    disk.store_chunk(DIGEST, 3, SIZE, piece(3))
    disk.complete(DIGEST, SIZE)
    assert (disk.objects / DIGEST).read_bytes() == DATA


@pytest.mark.parametrize(("part", "data"), [(0, b"short"), (3, piece(0)), (4, b""), (-1, piece(0)), (10**9, b"x")])
def test_a_chunk_that_does_not_belong_is_refused(tmp_path: Path, part: int, data: bytes) -> None:
    disk = make(tmp_path)
    with pytest.raises(PeerError, match="cannot keep chunk"):
        disk.store_chunk(DIGEST, part, SIZE, data)
    assert not list(disk.partial.iterdir())


def test_an_empty_object_has_one_empty_chunk(tmp_path: Path) -> None:
    disk = make(tmp_path)
    digest = hashlib.sha256(b"").hexdigest()
    disk.store_chunk(digest, 0, 0, b"")
    assert disk.parts(digest, 0) == [0]
    disk.complete(digest, 0)
    assert (disk.objects / digest).read_bytes() == b""


def test_space_is_checked_before_the_first_byte(tmp_path: Path) -> None:
    disk = make(tmp_path, free=SIZE + 4_999_999, reserve_mb=5)
    with pytest.raises(ResourceError, match=r"needs 0\.2 MB, and the disk has 5\.2 MB free, of which 5 MB") as caught:
        disk.parts(DIGEST, SIZE)
    assert caught.value.code == "resource.no_space"
    with pytest.raises(ResourceError):
        disk.store_chunk(DIGEST, 0, SIZE, piece(0))
    assert not list(disk.partial.iterdir())
    assert disk.free_mb() == 5


def test_a_download_needs_only_what_is_missing(tmp_path: Path) -> None:
    disk = make(tmp_path)
    disk.store_chunk(DIGEST, 0, SIZE, piece(0))
    disk.close()
    tight = make(tmp_path, free=SIZE - CHUNK_BYTES)
    assert tight.parts(DIGEST, SIZE) == [0]


def test_a_write_that_the_system_refuses_is_no_space_and_loses_no_chunk(tmp_path: Path) -> None:
    disk = make(tmp_path)
    disk.store_chunk(DIGEST, 0, SIZE, piece(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES + 5000, hard))  # the kernel itself refuses the rest
    try:
        with pytest.raises(ResourceError, match="cannot write a chunk of") as caught:
            disk.store_chunk(DIGEST, 1, SIZE, piece(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "resource.no_space"
    assert disk.parts(DIGEST, SIZE) == [0]
    for part in (1, 2, 3):
        disk.store_chunk(DIGEST, part, SIZE, piece(part))
    disk.complete(DIGEST, SIZE)


# -- versions


def packed(disk: Disk, folder: Path) -> tuple[str, Index]:
    index, sources = build_index(folder, read_folder(folder))
    data = index_bytes(index)
    fill(disk, digest_of(data), data)
    for sha256, path in sources.items():
        fill(disk, sha256, path.read_bytes())
    return digest_of(data), index


def test_a_version_is_laid_out_from_objects_and_removed(tmp_path: Path) -> None:
    source = module_folder(tmp_path / "m")
    (source / "main.py").chmod(0o755)
    disk = make(tmp_path / "state")
    digest, index = packed(disk, source)
    disk.install(digest, index)
    folder = disk.folder_of(digest)
    for entry in index.files:
        assert (folder / entry.path).read_bytes() == (source / entry.path).read_bytes()
    mode = (folder / "main.py").stat().st_mode
    assert mode & stat.S_IXUSR
    assert not mode & stat.S_IWUSR
    assert disk.damaged(digest, index) == ""
    assert disk.prepare().installed == {digest}
    disk.install(digest, index)
    disk.remove(digest, [*index.objects(), digest])
    assert not folder.exists()
    assert disk.prepare() == (frozenset(), frozenset(), frozenset())
    disk.remove(digest, [*index.objects(), digest])
    disk.remove("", [])
    assert disk.modules.is_dir()


def test_a_damaged_object_is_named_and_deleted_so_that_it_is_fetched_again(tmp_path: Path) -> None:
    disk = make(tmp_path / "state")
    digest, index = packed(disk, module_folder(tmp_path / "m"))
    victim = next(entry for entry in index.files if entry.path == "golden.npz").sha256
    path = disk.objects / victim
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(PeerError) as caught:
        disk.install(digest, index)
    assert caught.value.code == "package.digest_mismatch"
    assert caught.value.data["objects"] == [victim]
    assert not path.exists()
    assert not disk.folder_of(digest).exists()
    assert not list(disk.modules.iterdir())


def test_a_damaged_version_is_laid_out_again(tmp_path: Path) -> None:
    source = module_folder(tmp_path / "m")
    disk = make(tmp_path / "state")
    digest, index = packed(disk, source)
    disk.install(digest, index)
    file = disk.folder_of(digest) / "main.py"
    file.unlink()
    file.write_text("something else")
    assert disk.damaged(digest, index) == "main.py"
    disk.install(digest, index)
    assert file.read_bytes() == (source / "main.py").read_bytes()


def test_a_boot_clears_what_an_interrupted_install_left(tmp_path: Path) -> None:
    disk = make(tmp_path)
    for name in (".new-abc", ".old-def"):
        (disk.modules / name / "sub").mkdir(parents=True)
    assert disk.prepare().installed == frozenset()
    assert not list(disk.modules.iterdir())


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    disk = make(tmp_path / "state")
    digest, _ = packed(disk, module_folder(tmp_path / "m"))
    (disk.objects / digest).chmod(0o644)
    (disk.objects / digest).write_bytes(b"{}")
    for _ in range(2):  # damaged, then gone
        with pytest.raises(PeerError) as caught:
            disk.read_object(digest, 1000)
        assert caught.value.code == "package.digest_mismatch"
        assert caught.value.data["objects"] == [digest]


def test_downloads_that_nobody_waits_for_can_be_dropped(tmp_path: Path) -> None:
    disk = make(tmp_path)
    other = hashlib.sha256(b"other").hexdigest()
    for digest in (DIGEST, other):
        disk.store_chunk(digest, 0, SIZE, piece(0))
    assert disk.drop_partials({DIGEST}) == 1
    assert disk.prepare().partial == {DIGEST}
