"""Packing with an environment: resolved once, locked, bundled, the same bytes again; what cannot be had is named."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import msgspec
import pytest

from skerry import environments as client
from skerry_modules import environments, package
from skerry_modules.errors import InputError, PeerError, ResourceError, SkerryError
from skerry_modules.index import index_bytes, parse_index

from . import wheels
from .conftest import HERE, PYTHON, MakeModule, here


def pack(folder: Path, target: Path, *, relock: bool = False) -> package.Packed:
    return client.pack(folder, target, relock=relock)


def test_what_requirements_need_is_bundled_and_locked(stocked: Path, make_module: MakeModule, tmp_path: Path) -> None:
    packed = pack(make_module(), tmp_path / "a.skerry")
    lock = packed.index.facts.environment
    assert lock is not None
    (target,) = lock.targets
    assert (target.architecture, target.python) == (HERE, PYTHON)
    names = [wheel.file.split("-")[0] for wheel in target.wheels]
    assert names == ["base_part", "greeting"]
    files = {entry.path: entry for entry in packed.index.files}
    for wheel in target.wheels:
        assert files[environments.FOLDER + wheel.file].sha256 == wheel.sha256
        assert (stocked / wheel.file).stat().st_size == wheel.size
    with package.read_package(packed.path) as opened:
        opened.verify()


def test_packing_twice_gives_the_same_bytes_whatever_the_index_learned(
    stocked: Path, make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_module()
    first = pack(folder, tmp_path / "a.skerry")
    digits = PYTHON.replace(".", "")
    tag = f"cp{digits}-cp{digits}-manylinux_2_17_{HERE}"
    wheels.build(stocked, "base_part", "2.2", {"base_part.py": "FACTOR = 4.0\n"}, tag=tag)
    second = pack(folder, tmp_path / "b.skerry")
    assert first.path.read_bytes() == second.path.read_bytes()
    # On another machine, with the lock from the repository and an empty cache: fetched by hash.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "another-cache"))
    third = pack(elsewhere, tmp_path / "c.skerry")
    assert first.path.read_bytes() == third.path.read_bytes()
    newer = pack(folder, tmp_path / "d.skerry", relock=True)
    assert "base_part-2.2" in " ".join(entry.path for entry in newer.index.files)


def test_other_requirements_are_resolved_anew(stocked: Path, make_module: MakeModule, tmp_path: Path) -> None:
    folder = make_module()
    pack(folder, tmp_path / "a.skerry")
    wheels.build(stocked, "more", "1", {"more.py": ""})
    make_module(requirements=("greeting==1.0", "more==1"))
    packed = pack(folder, tmp_path / "b.skerry")
    assert environments.FOLDER + "more-1-py3-none-any.whl" in [entry.path for entry in packed.index.files]


def test_a_wheel_of_the_folder_is_found_before_the_index_knows_it(
    index: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    folder = make_module(requirements=("private==3",), environment="wheels = ['own/private-3-py3-none-any.whl']")
    wheels.build(folder / "own", "private", "3", {"private.py": "A = 1\n"})
    packed = pack(folder, tmp_path / "a.skerry")
    first = packed.index.facts.environment
    assert first is not None
    assert list(first.wheels()) == ["private-3-py3-none-any.whl"]
    wheels.build(folder / "own", "private", "3", {"private.py": "A = 2\n"})  # built again: the lock is outdated
    again = pack(folder, tmp_path / "b.skerry").index.facts.environment
    assert again is not None
    assert environments.key_of(again) != environments.key_of(first)


def test_what_has_no_wheel_for_a_class_is_named_with_its_tag(
    stocked: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    folder = make_module(targets=[here(), "pynq-z2"])
    with pytest.raises(InputError) as caught:
        pack(folder, tmp_path / "a.skerry")
    error = caught.value
    assert error.code == "environment.unresolvable"
    assert error.data["package"].startswith("base_part")
    assert error.data["tag"] == f"Python {PYTHON}, manylinux_2_35_armv7l"
    assert "pynq-z2" in error.message
    assert not (folder / environments.LOCK_FILE).exists()


def test_versions_that_contradict_each_other_are_named(index: Path, make_module: MakeModule, tmp_path: Path) -> None:
    wheels.build(index, "one", "1", {"one.py": ""}, requires=["shared==1"])
    wheels.build(index, "two", "1", {"two.py": ""}, requires=["shared==2"])
    for version in ("1", "2"):
        wheels.build(index, "shared", version, {"shared.py": ""})
    with pytest.raises(InputError, match="conflict") as caught:
        pack(make_module(requirements=("one==1", "two==1")), tmp_path / "a.skerry")
    assert caught.value.code == "environment.unresolvable"


def test_an_index_that_cannot_be_reached_is_not_blamed_on_the_package(
    index: Path, make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:  # bound and not listening: every connection is refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(ResourceError, match="cannot reach the package index") as caught:
            pack(make_module(), tmp_path / "a.skerry")
    assert caught.value.code == "environment.unavailable"
    assert "Connection refused" in caught.value.message


def test_an_environment_may_not_bring_what_the_worker_cannot_use(
    index: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    wheels.build(index, "msgspec", "0.1", {"msgspec.py": ""})
    with pytest.raises(InputError) as caught:
        pack(make_module(requirements=("msgspec==0.1",)), tmp_path / "a.skerry")
    assert caught.value.code == "environment.unresolvable"


def test_markers_are_judged_by_the_device_and_not_by_this_machine(
    index: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    requires = [
        'for_arm; platform_machine == "armv7l"',
        'for_here; platform_machine != "armv7l"',
        'for_old; python_version < "3.13"',
        'for_new; python_version >= "3.13"',
        'for_windows; sys_platform == "win32"',
        'extra_part; extra == "more"',
    ]
    wheels.build(index, "picky", "1", {"picky.py": ""}, requires=requires)
    for name in ("for_arm", "for_here", "for_old", "for_new", "extra_part"):
        wheels.build(index, name, "1", {f"{name}.py": ""})
    folder = make_module(requirements=("picky==1",), targets=["pynq-z2"])
    text = (folder / "module.toml").read_text().replace(f"python = ['{PYTHON}']", "python = ['3.12', '3.13']")
    (folder / "module.toml").write_text(text)
    lock = pack(folder, tmp_path / "a.skerry").index.facts.environment
    assert lock is not None
    found = {target.python: {wheel.file.split("-")[0] for wheel in target.wheels} for target in lock.targets}
    assert found == {"3.12": {"picky", "for_arm", "for_old"}, "3.13": {"picky", "for_arm", "for_new"}}


def test_a_wheel_that_changed_in_the_index_is_refused(
    stocked: Path, make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_module()
    pack(folder, tmp_path / "a.skerry")
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "another-cache"))
    wheels.build(stocked, "greeting", "1.0", {"greeting/__init__.py": "FACTOR = 666\n"}, requires=["base_part"])
    with pytest.raises(SkerryError) as caught:
        pack(folder, tmp_path / "b.skerry")
    assert caught.value.code in ("environment.unavailable", "package.digest_mismatch")
    assert not (tmp_path / "b.skerry").exists()


def test_packing_without_a_lock_says_what_to_do(stocked: Path, make_module: MakeModule, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="skerry modules pack") as caught:
        package.write_package(make_module(), tmp_path / "a.skerry")
    assert caught.value.code == "environment.not_locked"


def test_an_index_that_bundles_other_wheels_than_its_lock_names_is_refused(
    stocked: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    index = pack(make_module(), tmp_path / "a.skerry").index
    assert parse_index(index_bytes(index)) == index
    wheel = next(entry for entry in index.files if entry.path.startswith(environments.FOLDER))
    without = msgspec.structs.replace(index, files=tuple(entry for entry in index.files if entry != wheel))
    swapped = msgspec.structs.replace(
        index, files=tuple(msgspec.structs.replace(e, sha256="0" * 64) if e == wheel else e for e in index.files)
    )
    unlocked = msgspec.structs.replace(index, facts=msgspec.structs.replace(index.facts, environment=None))
    for bad in (without, swapped, unlocked):
        with pytest.raises(PeerError) as caught:
            parse_index(index_bytes(bad))
        assert caught.value.code == "package.unreadable"
