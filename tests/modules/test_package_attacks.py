"""Packages are closed to every attack that an archive can carry. Attacks are tests by name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.packages import KEY, entry, pack, read_all, rewrite
from skerry_modules import package, trust
from skerry_modules.errors import PeerError, SkerryError
from skerry_modules.index import FileEntry, Limits

_small: list[bytes] = []


def small_package(factory: pytest.TempPathFactory) -> bytes:
    if not _small:
        _small.append(pack(factory.mktemp("small")).path.read_bytes())
    return _small[0]


# -- attacks, by name --------------------------------------------------------------------------------------------------


def traversal(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].name = "objects/../../../etc/cron.d/x"


def absolute_path(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].name = "/etc/passwd"


def symbolic_link(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2] = (entry(members[2][0].name, tarfile.SYMTYPE, "/etc/passwd"), b"")


def hard_link(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2] = (entry(members[2][0].name, tarfile.LNKTYPE, "index.json"), b"")


def device(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2] = (entry(members[2][0].name, tarfile.CHRTYPE), b"")


def folder_entry(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.insert(2, (entry("objects", tarfile.DIRTYPE), b""))


def sparse_file(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].type = tarfile.GNUTYPE_SPARSE


def extension_header(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    header = entry("pax", tarfile.XHDTYPE, size=1 << 33)  # a reader that obeys it takes 8 GB of memory
    members.insert(0, (header, header.tobuf(tarfile.GNU_FORMAT)))


def duplicate(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.insert(3, members[2])


def surplus_at_the_end(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.append((entry("objects/" + "0" * 64, size=1), b"x"))


def surplus_before(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.insert(2, (entry("objects/" + "0" * 64, size=1), b"x"))


def missing_object(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    del members[2]


def missing_last_object(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    del members[-1]


def missing_signatures(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    del members[1]


def another_order(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2:] = members[:1:-1]


def larger_than_declared(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].size += 1
    members[2] = (members[2][0], members[2][1] + b"x")


def smaller_than_declared(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].size -= 1
    members[2] = (members[2][0], members[2][1][:-1])


def changed_content(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2] = (members[2][0], bytes([members[2][1][0] ^ 1]) + members[2][1][1:])


def a_time_in_a_header(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[2][0].mtime = 12345


def index_bomb(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    content = b" " * (package.DEFAULT_LIMITS.max_index_bytes + 1)
    members[0] = (entry("index.json", size=len(content)), content)


def signatures_bomb(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    content = b"[" * (package.DEFAULT_LIMITS.max_signatures_bytes + 1)
    members[1] = (entry("signatures.json", size=len(content)), content)


def nested_signatures(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    content = b"[" * 10_000
    members[1] = (entry("signatures.json", size=len(content)), content)


ATTACKS = {
    traversal: "package.unsafe_path",
    absolute_path: "package.unsafe_path",
    symbolic_link: "package.unsafe_entry",
    hard_link: "package.unsafe_entry",
    device: "package.unsafe_entry",
    folder_entry: "package.unsafe_entry",
    sparse_file: "package.unsafe_entry",
    extension_header: "package.unsafe_entry",
    duplicate: "package.unsafe_entry",
    surplus_at_the_end: "package.unsafe_entry",
    surplus_before: "package.unsafe_entry",
    missing_object: "package.unsafe_entry",
    missing_last_object: "package.unreadable",
    missing_signatures: "package.unsafe_entry",
    another_order: "package.unsafe_entry",
    larger_than_declared: "package.too_large",
    smaller_than_declared: "package.digest_mismatch",
    changed_content: "package.digest_mismatch",
    a_time_in_a_header: "package.unreadable",
    index_bomb: "package.too_large",
    signatures_bomb: "package.too_large",
    nested_signatures: "package.unreadable",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_by_the_archive_is_refused(tmp_path: Path, attack: Callable[..., None]) -> None:
    good = pack(tmp_path).path.read_bytes()
    assert read_all(rewrite(good, lambda members: None))  # the rewriting alone changes nothing
    bad = tmp_path / "bad.skerry"
    bad.write_bytes(rewrite(good, attack))
    with pytest.raises(PeerError) as caught:
        package.unpack(bad, tmp_path / "target")
    assert caught.value.code == ATTACKS[attack], caught.value.message
    assert caught.value.message.startswith("cannot ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.skerry",
        "module",
        "out.skerry",
    ]  # nothing half-done stays


INDEX_ATTACKS: dict[str, tuple[Callable[[package.Index], package.Index], str]] = {
    "parent path": (lambda index: with_files(index, "../x"), "package.unsafe_path"),
    "absolute path": (lambda index: with_files(index, "/etc/x"), "package.unsafe_path"),
    "backslash": (lambda index: with_files(index, "a\\b"), "package.unsafe_path"),
    "drive": (lambda index: with_files(index, "C:x"), "package.unsafe_path"),
    "newline": (lambda index: with_files(index, "a\nb"), "package.unsafe_path"),
    "null": (lambda index: with_files(index, "a\0b"), "package.unsafe_path"),
    "dot": (lambda index: with_files(index, "./a"), "package.unsafe_path"),
    "empty": (lambda index: with_files(index, ""), "package.unsafe_path"),
    "file as folder": (lambda index: with_files(index, "main.py/x"), "package.unsafe_path"),
    "twice": (lambda index: with_files(index, "main.py"), "package.unreadable"),
    "no digest": (lambda index: with_files(index, "x", sha256="zz"), "package.unreadable"),
    "digest as path": (lambda index: with_files(index, "x", sha256="../" * 20 + "etc/"), "package.unreadable"),
    "negative size": (lambda index: with_files(index, "x", size=-1), "package.too_large"),
    "size bomb": (lambda index: with_files(index, "x", size=1 << 60), "package.too_large"),
    "other format": (lambda index: msgspec.structs.replace(index, format=2), "package.unreadable"),
    "no model": (lambda index: msgspec.structs.replace(index, files=index.files[1:]), "package.unreadable"),
    "no format in manifest": (
        lambda index: msgspec.structs.replace(index, manifest=msgspec.structs.replace(index.manifest, name="../x")),
        "package.unreadable",
    ),
}


def with_files(index: package.Index, path: str, sha256: str = "0" * 64, size: int = 1) -> package.Index:
    files = sorted((*index.files, FileEntry(path, sha256, size)), key=lambda file: file.path)
    return msgspec.structs.replace(index, files=tuple(files))


@pytest.mark.parametrize("name", INDEX_ATTACKS)
def test_an_attack_by_the_index_is_refused(tmp_path: Path, name: str) -> None:
    change, code = INDEX_ATTACKS[name]
    with pytest.raises(PeerError) as caught:
        package.parse_index(package.index_bytes(change(pack(tmp_path).index)))
    assert caught.value.code == code, caught.value.message


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(max_files=2), "package.too_many_files"),
        (Limits(max_file_bytes=10), "package.too_large"),
        (Limits(max_total_bytes=100), "package.too_large"),
        (Limits(max_index_bytes=50), "package.too_large"),
        (Limits(max_signatures_bytes=3), "package.too_large"),
    ],
)
def test_each_limit_holds_before_any_object_is_read(tmp_path: Path, limits: Limits, code: str) -> None:
    data = pack(tmp_path, {"third": b"3"}).path.read_bytes()
    assert read_all(data)
    stream = io.BytesIO(data)
    with pytest.raises(PeerError, match="limit is") as caught, package.read_package(stream, limits):
        pass
    assert caught.value.code == code
    assert stream.tell() <= 4096


def test_many_small_files_over_the_limit_are_refused(tmp_path: Path) -> None:
    index = pack(tmp_path).index
    many = tuple(FileEntry(f"f{number:06}", "0" * 64, 0) for number in range(5000))
    with pytest.raises(PeerError) as caught:
        package.parse_index(package.index_bytes(msgspec.structs.replace(index, files=many)))
    assert caught.value.code == "package.too_many_files"


def test_writing_from_objects_refuses_content_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    with pytest.raises(PeerError) as caught:
        package.write_objects(tmp_path / "x.skerry", package.index_bytes(packed.index), (), lambda _: iter([b"no"]))
    assert caught.value.code == "package.digest_mismatch"
    assert not (tmp_path / "x.skerry").exists()


def test_a_damaged_package_gets_no_fresh_signature(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    packed.path.write_bytes(rewrite(packed.path.read_bytes(), changed_content))
    with pytest.raises(PeerError, match="damaged or changed"):
        package.add_signature(packed.path, tmp_path / "signed.skerry", KEY)
    assert not (tmp_path / "signed.skerry").exists()


def accept(data: bytes) -> None:
    with package.read_package(io.BytesIO(data)) as opened:
        opened.verify()
        package.verify_index(opened.index_bytes, opened.signatures, {KEY.public.keyid: KEY.public})


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_one_flipped_byte_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    original = small_package(tmp_path_factory)
    at = data.draw(st.integers(0, len(original) - 1))
    flipped = bytearray(original)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SkerryError) as caught:
        accept(bytes(flipped))
    assert caught.value.family in ("peer", "input")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_package_cut_short_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    original = small_package(tmp_path_factory)
    with pytest.raises(PeerError):
        read_all(original[: data.draw(st.integers(0, len(original) - 1))])


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_peer_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(PeerError):
        read_all(data)
    with pytest.raises(PeerError):
        package.parse_index(data)


def test_a_signature_over_an_index_is_good_for_nothing_else(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    data = package.index_bytes(packed.index)
    with pytest.raises(PeerError) as caught:
        trust.verify(trust.DESIRED_TYPE, data, packed.signatures, {KEY.public.keyid: KEY.public})
    assert caught.value.code == "trust.bad_signature"
