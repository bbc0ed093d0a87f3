"""Packages: the same content gives the same bytes, and every file comes back."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.packages import KEY, MANIFEST, make_folder, pack
from skerry_modules import package
from skerry_modules.errors import InputError, PeerError
from skerry_modules.trust import SigningKey

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
