"""Packages: deterministic, whole, and closed to every attack that an archive can carry. Attacks are tests by name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_modules import package, trust
from skerry_modules.errors import InputError, PeerError, SkerryError
from skerry_modules.index import FileEntry, Limits
from skerry_modules.trust import SigningKey

MANIFEST = """\
format = 1
name = "echo"
engine = "python"
model = "main.py"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""
KEY = SigningKey.generate("tester")


def make_folder(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, data in {"module.toml": MANIFEST.encode(), "main.py": b"def run(x): return x\n", **(files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(tmp_path: Path, files: dict[str, bytes] | None = None) -> package.Packed:
    return package.write_package(make_folder(tmp_path / "module", files), tmp_path / "out.skerry", KEY)


def read_all(data: bytes, limits: Limits = package.DEFAULT_LIMITS) -> package.Index:
    with package.read_package(io.BytesIO(data), limits) as opened:
        opened.verify()
        return opened.index


def rewrite(data: bytes, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> bytes:
    """Take a package apart with the standard library, change its members, and write them as ustar again."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    change(members)
    out = io.BytesIO()
    for member, content in members:
        out.write(member.tobuf(tarfile.USTAR_FORMAT) if member.type != b"x" else content)
        if member.type == tarfile.REGTYPE:
            out.write(content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(1024)


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


# -- the same content, the same bytes ----------------------------------------------------------------------------------


def test_packing_twice_gives_the_same_bytes_whatever_times_order_modes_and_umask_are(tmp_path: Path) -> None:
    files = {"b.bin": b"b" * 700, "a/deep/c.txt": b"c", "a.txt": b""}
    first = package.write_package(make_folder(tmp_path / "one", files), tmp_path / "1.skerry", KEY)
    before = os.umask(0o077)
    try:
        other = make_folder(tmp_path / "two", dict(reversed(files.items())))
        for path in other.rglob("*"):
            os.utime(path, (1, 1))
        package.write_package(other, tmp_path / "2.skerry", KEY)
    finally:
        os.umask(before)
    assert (tmp_path / "1.skerry").read_bytes() == (tmp_path / "2.skerry").read_bytes()
    with package.read_package(tmp_path / "1.skerry") as opened:
        assert opened.digest == first.digest == package.digest_of(opened.index_bytes)


def test_the_size_is_known_before_the_bytes_are_made(tmp_path: Path) -> None:
    packed = pack(tmp_path, {"a": b"1" * 512, "b": b"2" * 513, "same": b"1" * 512})
    assert package.package_size(package.index_bytes(packed.index), packed.signatures) == packed.path.stat().st_size


def test_a_standard_tar_reads_it(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    with tarfile.open(packed.path) as archive:
        names = archive.getnames()
    assert names == ["index.json", "signatures.json", *(f"objects/{sha256}" for sha256 in packed.index.objects())]


def test_unpacking_gives_every_file_back(tmp_path: Path) -> None:
    files = {"data/x.bin": os.urandom(300_000), "data/same.bin": b"s", "other/same.bin": b"s", "empty": b""}
    folder = make_folder(tmp_path / "module", files)
    (folder / "main.py").chmod(0o755)
    package.write_package(folder, tmp_path / "out.skerry")
    index = package.unpack(tmp_path / "out.skerry", tmp_path / "copy")
    again = {path: (tmp_path / "copy" / path).read_bytes() for path in (entry.path for entry in index.files)}
    assert again == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert os.access(tmp_path / "copy" / "main.py", os.X_OK)
    assert not os.access(tmp_path / "copy" / "empty", os.X_OK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "module", "out.skerry"]


NAMES = st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z]{1,3})?", fullmatch=True).filter(
    lambda name: not name.endswith(".skerry")
)
FOLDERS = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=1500), max_size=6)


@given(FOLDERS)
@settings(max_examples=60, deadline=None)
def test_any_folder_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    parents = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
    files = {path: data for path, data in files.items() if path not in parents and "__pycache__" not in path}
    files = {path: data for path, data in files.items() if path not in ("module.toml", "main.py")}
    place = tmp_path_factory.mktemp("any")
    folder = make_folder(place / "module", files)
    package.write_package(folder, place / "out.skerry", KEY)
    index = package.unpack(place / "out.skerry", place / "copy")
    assert {entry.path for entry in index.files} == {*files, "module.toml", "main.py"}
    assert {path: (place / "copy" / path).read_bytes() for path in files} == files
    package.write_package(place / "copy", place / "again.skerry", KEY)
    assert (place / "again.skerry").read_bytes() == (place / "out.skerry").read_bytes()


def test_hidden_files_caches_and_packages_stay_out_and_globs_choose(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path / "module",
        {".git/config": b"", "__pycache__/x.pyc": b"", "old.skerry": b"", ".env": b"", "a.txt": b"a", "n/b.txt": b"b"},
    )
    index, _ = package.build_index(folder, package.read_folder(folder))
    assert [file.path for file in index.files] == ["a.txt", "main.py", "module.toml", "n/b.txt"]
    (folder / "module.toml").write_text('files = ["n/*"]\n' + MANIFEST)
    index, _ = package.build_index(folder, package.read_folder(folder))
    assert [file.path for file in index.files] == ["main.py", "module.toml", "n/b.txt"]
    (folder / "module.toml").write_text('files = ["missing/*"]\n' + MANIFEST)
    with pytest.raises(InputError, match=r"line 1, field files\[0\]: no file matches 'missing/\*'"):
        package.build_index(folder, package.read_folder(folder))


def test_a_file_that_the_manifest_names_must_be_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "module")
    (folder / "main.py").unlink()
    with pytest.raises(InputError, match=r"line 4, field model: there is no file 'main.py'") as caught:
        package.write_package(folder, tmp_path / "out.skerry")
    assert caught.value.code == "manifest.invalid"
    assert not (tmp_path / "out.skerry").exists()


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`skerry init` writes one") as caught:
        package.read_folder(tmp_path)
    assert caught.value.code == "manifest.unreadable"


@pytest.mark.parametrize("kind", ["file link", "folder link", "dangling link", "fifo"])
def test_a_link_or_device_in_the_folder_is_not_packed(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "module")
    match kind:
        case "file link":
            (folder / "x").symlink_to("/etc/passwd")
        case "folder link":
            (folder / "x").symlink_to("/etc")
        case "dangling link":
            (folder / "x").symlink_to("nowhere")
        case "fifo":
            os.mkfifo(folder / "x")
    with pytest.raises(PeerError, match="'x' is a link or no regular file") as caught:
        package.write_package(folder, tmp_path / "out.skerry")
    assert caught.value.code == "package.unsafe_entry"


def test_signing_again_keeps_the_digest_and_both_signatures(tmp_path: Path) -> None:
    packed, second = pack(tmp_path), SigningKey.generate("second")
    again = package.add_signature(packed.path, tmp_path / "twice.skerry", second)
    assert again.digest == packed.digest
    with package.read_package(tmp_path / "twice.skerry") as opened:
        opened.verify()
        for key in (KEY, second):
            signer = package.verify_index(opened.index_bytes, opened.signatures, {key.public.keyid: key.public})
            assert signer == key.public
    with pytest.raises(PeerError, match="cannot trust") as caught:
        package.verify_index(opened.index_bytes, opened.signatures, {})
    assert caught.value.code == "trust.unknown_key"


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


def test_a_stream_that_gives_little_at_a_time_reads_the_same(tmp_path: Path) -> None:
    class Dripping(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._inner = io.BytesIO(data)

        def read(self, size: int = -1) -> bytes:
            return self._inner.read(min(size, 7))

    packed = pack(tmp_path, {"big": os.urandom(2000)})
    with package.read_package(Dripping(packed.path.read_bytes())) as opened:  # type: ignore[arg-type]
        opened.verify()
        assert opened.digest == packed.digest


def test_a_missing_package_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the package"), package.read_package(tmp_path / "no.skerry"):
        pass


def test_unpacking_over_something_is_refused(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="it exists"):
        package.unpack(packed.path, tmp_path / "there")


_small: list[bytes] = []


def small_package(factory: pytest.TempPathFactory) -> bytes:
    if not _small:
        _small.append(pack(factory.mktemp("small")).path.read_bytes())
    return _small[0]


def test_a_signature_over_an_index_is_good_for_nothing_else(tmp_path: Path) -> None:
    packed = pack(tmp_path)
    data = package.index_bytes(packed.index)
    with pytest.raises(PeerError) as caught:
        trust.verify(trust.DESIRED_TYPE, data, packed.signatures, {KEY.public.keyid: KEY.public})
    assert caught.value.code == "trust.bad_signature"
