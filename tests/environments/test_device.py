"""On the device: built offline from bundled wheels, proven, shared, collected; cut off anywhere, nothing counts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.harness import Running
from agent.serving.test_pipeline import mixed
from skerry import environments as client
from skerry_agent.device_health import facts
from skerry_agent.disk import Disk
from skerry_agent.environments import LIST_NAME, Environments, target_for, unneeded
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import environments, package, profiles
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.index import Index, index_bytes
from skerry_modules.messages import Route
from support.processes import wait_until

from . import wheels
from .conftest import HERE, PYTHON, MakeModule, here

T = TypeVar("T")

AGENT = """
import asyncio, sys
from pathlib import Path
from skerry_agent.environments import Environments
from skerry_modules.environments import choose
from skerry_modules.index import parse_index

folder, index, machine, python = sys.argv[1:]
lock = parse_index(Path(index).read_bytes()).facts.environment
place = Environments(Path(folder), Path(folder) / "objects")
asyncio.run(place.build(lock, choose(lock, machine, python, "")))
"""


def builders(folder: Path) -> list[str]:
    """Building processes whose agent was started in the state folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                "environment_build" in (process / "cmdline").read_text()
                and (process / "cwd").readlink() == folder.parent
            ):
                found.append(process.name)
        except OSError:
            continue
    return found


class Device:
    """The store of a device, with packages put into it as a download would."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder, reserve_mb=0, sync_chunks=16)
        self.disk.prepare()
        self.environments = Environments(folder, self.disk.objects)
        self.environments.prepare()
        self.facts = facts(profiles.get(here()), {}, 1000)

    def receive(self, path: Path) -> tuple[str, Index]:
        with package.read_package(path) as opened:
            for item in opened.objects():
                (self.disk.objects / item.sha256).write_bytes(b"".join(item))
            (self.disk.objects / opened.digest).write_bytes(opened.index_bytes)
            return opened.digest, opened.index

    def install(self, path: Path) -> tuple[str, Index, dict[str, Any]]:
        digest, index = self.receive(path)
        self.disk.install(digest, index)
        return digest, index, run(self.build(index))

    async def build(self, index: Index) -> dict[str, Any]:
        target, lock = target_for(index, self.facts), index.facts.environment
        assert target is not None
        assert lock is not None
        return await self.environments.build(lock, target)

    def environment(self, index: Index) -> Path:
        assert index.facts.environment is not None
        return self.environments.path(index.facts.environment)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "device")


@pytest.fixture(scope="module")
def resolved() -> list[environments.Bundle]:
    """What the first test resolved: all of these modules name the same packages."""
    return []


@pytest.fixture
def packed(
    stocked: Path,
    make_module: MakeModule,
    resolved: list[environments.Bundle],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    def make(name: str = "scorer", **options: Any) -> Path:
        folder = make_module(name, **options)
        if not resolved:
            monkeypatch.setenv("SKERRY_CACHE", str(tmp_path_factory.mktemp("resolved")))
            bundle = client.prepare(folder, package.read_folder(folder))
            assert bundle is not None
            resolved.append(bundle)
        return package.write_package(folder, tmp_path / f"{name}.skerry", bundle=resolved[0]).path

    return make


def inside(environment: Path, code: str) -> str:
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-I", "-B", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def serve(device: Device, *modules: tuple[str, Index], then: Callable[[Running], T]) -> T:
    plane = Running(ServingSettings(http="127.0.0.1:0", cache="", report_s=0.1))
    try:
        for number, (digest, index) in enumerate(modules, start=1):
            manifest = index.manifest
            folder, limits = device.disk.folder_of(digest), profiles.get(here()).limits
            environment = str(device.environment(index)) if index.facts.environment else ""
            plane.call(plane.plane.load(digest, folder, manifest, number, limits, environment=environment))
            route = (Route(module=manifest.name, version=number, percent=100.0),)
            plane.do(lambda m=manifest, r=route, d=digest: plane.plane.set_routes(m.name, r, (d,)))  # type: ignore[misc]
        return then(plane)
    finally:
        plane.close()


def score(plane: Running, name: str, times: float = 1.0) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [times, 2 * times, 3 * times, 4 * times]}
    answer = plane.ask("POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})
    return answer.json["outputs"][0]["data"] if answer.status == 200 else answer.json


def test_a_module_scores_with_the_packages_that_it_brought(device: Device, packed: Callable[..., Path]) -> None:
    digest, index, told = device.install(packed())
    assert told["built"]
    environment = device.environment(index)
    assert inside(environment, "import greeting; print(greeting.FACTOR)") == "3.0"
    # Nothing of the device's own is visible from within, and no wheel lies in the module's folder.
    assert (
        inside(environment, "import importlib.util as u; print(u.find_spec('msgspec'), u.find_spec('pip'))")
        == "None None"
    )
    assert not list(device.disk.folder_of(digest).rglob("*.whl"))
    assert device.disk.damaged(digest, index) == ""
    before = {path for path in environment.rglob("*") if path.is_file()}
    assert serve(device, (digest, index), then=lambda plane: score(plane, "scorer")) == [30.0]
    assert {path for path in environment.rglob("*") if path.is_file()} == before


def test_the_agents_own_packages_do_not_leak_in_but_numpy_does(device: Device, packed: Callable[..., Path]) -> None:
    script = """
import importlib.util, sys
import numpy as np
import greeting

def run(inputs):
    others = ("psutil", "paho", "cryptography", "httpx", "onnxruntime")
    found = [name for name in others if importlib.util.find_spec(name)]
    assert sys.prefix != sys.base_prefix, "not in an environment"
    assert not found, found
    return {"y": np.full(len(inputs["x"]), greeting.FACTOR)}
"""
    digest, index, _ = device.install(packed(script=script))
    assert serve(device, (digest, index), then=lambda plane: score(plane, "scorer")) == [3.0]


def test_a_pipeline_has_its_packages_and_the_agents_runtimes(
    device: Device, packed: Callable[..., Path], tmp_path: Path
) -> None:
    _, index, _ = device.install(packed())
    script = "import greeting\ndef run(inputs):\n    return {'x': inputs['x'] * greeting.FACTOR}\n"
    module = mixed(tmp_path / "plain"), mixed(tmp_path / "tripled")
    (module[1].folder / "halve.py").write_text(script)
    plane = Running(ServingSettings(http="127.0.0.1:0", cache="", report_s=0.1))
    try:
        limits, found = profiles.get(here()).limits, []
        for number, (one, environment) in enumerate(zip(module, ("", str(device.environment(index))), strict=True), 1):
            told = plane.call(
                plane.plane.load(one.digest, one.folder, one.manifest, number, limits, environment=environment)
            )
            route = (Route(module="chain", version=number, percent=100.0),)
            plane.do(lambda n=number, r=route, d=one.digest: plane.plane.set_routes(f"chain-{n}", r, (d,)))  # type: ignore[misc]
            # The plain one halves what it is given, the other multiplies it by what its package says: 3.
            found.append((told["engine"], score(plane, f"chain-{number}", 0.1 if environment else 0.6)))
    finally:
        plane.close()
    assert found[0][0] == found[1][0]  # the same runtimes, and their versions are known in the environment too
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


def test_modules_with_the_same_lock_share_an_environment_and_its_zygote(
    device: Device, packed: Callable[..., Path]
) -> None:
    first, one, told = device.install(packed("first"))
    second, two, again = device.install(packed("second"))
    assert told["environment"] == again["environment"]
    assert (told["built"], again["built"]) == (True, False)
    assert len(device.environments.present()) == 1

    def both(plane: Running) -> tuple[Any, Any, int]:
        return score(plane, "first"), score(plane, "second"), len(plane.plane.pids())

    assert serve(device, (first, one), (second, two), then=both) == ([30.0], [30.0], 3)  # one zygote, two workers


def test_two_that_install_at_once_build_it_once(device: Device, packed: Callable[..., Path]) -> None:
    indexes = [device.receive(packed(name))[1] for name in ("first", "second")]

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(*(device.build(index) for index in indexes))

    assert sorted(told["built"] for told in run(both())) == [False, True]


def test_an_environment_goes_with_the_last_module_that_needs_it(device: Device, packed: Callable[..., Path]) -> None:
    first, one, _ = device.install(packed("first"))
    second, _, _ = device.install(packed("second"))
    environment = device.environment(one)
    device.disk.remove(first)
    assert device.environments.collect(device.disk.environments_needed) == set()
    assert environment.is_dir()
    device.disk.remove(second)
    assert device.environments.collect(device.disk.environments_needed) == {environment.name}
    assert list(device.environments.folder.iterdir()) == []


def test_while_an_index_cannot_be_read_nothing_is_collected(device: Device, packed: Callable[..., Path]) -> None:
    digest, index, _ = device.install(packed())
    (device.disk.objects / digest).write_bytes(b"torn")
    assert device.environments.collect(device.disk.environments_needed) == set()
    assert device.environment(index).is_dir()


@given(present=st.sets(st.sampled_from("abcd")), needed=st.dictionaries(st.integers(), st.sampled_from(["", *"abcd"])))
def test_what_goes_is_there_and_needed_by_none(present: set[str], needed: dict[Any, str | None]) -> None:
    gone = unneeded(present, needed)
    assert gone == present - set(needed.values())
    assert unneeded(present - gone, needed) == set()
    assert unneeded(present, {**needed, "torn": None}) == set()


def test_a_kill_in_the_middle_of_a_build_leaves_nothing_that_counts(
    device: Device, packed: Callable[..., Path]
) -> None:
    _, index = device.receive(packed())
    folder = device.environments.folder
    order = subprocess.Popen(
        [sys.executable, "-m", "skerry_agent.environment_build", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    target = target_for(index, device.facts)
    assert target is not None
    assert order.stdin is not None
    text = {
        "target": str(device.environment(index)),
        "objects": str(device.disk.objects),
        "wheels": [{name: getattr(wheel, name) for name in wheel.__struct_fields__} for wheel in target.wheels],
    }
    order.stdin.write(json.dumps(text).encode())
    order.stdin.close()
    until = time.monotonic() + 30
    while not list(folder.glob(".new-*/lib")) and time.monotonic() < until:
        time.sleep(0.001)
    order.send_signal(signal.SIGKILL)
    order.wait()
    assert order.stdout is not None
    order.stdout.close()
    assert list(folder.glob(".new-*"))  # it was in the middle
    assert device.environments.present() == set()
    again = Device(device.disk.folder)
    assert list(folder.iterdir()) == []
    assert run(again.build(index))["built"]
    assert inside(device.environment(index), "import greeting; print(greeting.FACTOR)") == "3.0"


def test_a_build_ends_with_the_agent_that_was_killed(
    device: Device, packed: Callable[..., Path], tmp_path: Path
) -> None:
    _, index = device.receive(packed())
    folder = device.environments.folder
    (tmp_path / "index.json").write_bytes(index_bytes(index))
    command = [sys.executable, "-c", AGENT, str(device.disk.folder), str(tmp_path / "index.json"), HERE, PYTHON]
    agent = subprocess.Popen(command, cwd=device.disk.folder)
    until = time.monotonic() + 30
    while not list(folder.glob(".new-*/lib")) and time.monotonic() < until:
        time.sleep(0.001)
    assert builders(folder)
    agent.kill()
    agent.wait()
    wait_until(lambda: not builders(folder), what="the build to end with its agent")
    assert device.environments.present() == set()
    again = Device(device.disk.folder)
    assert list(folder.iterdir()) == []
    assert run(again.build(index))["built"]


def test_what_is_being_built_is_not_present(device: Device) -> None:
    work = device.environments.folder / ".new-key"  # its list is written; the rename that finishes it is not done
    work.mkdir(parents=True)
    (work / LIST_NAME).write_text("")
    assert device.environments.present() == set()
    work.rename(work.with_name("key"))
    assert device.environments.present() == {"key"}


def test_a_build_that_is_given_up_ends_and_leaves_nothing(device: Device, packed: Callable[..., Path]) -> None:
    _, index = device.receive(packed())

    async def give_up() -> None:
        task = asyncio.ensure_future(device.build(index))
        while not list(device.environments.folder.glob(".new-*/lib")):
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(give_up())
    assert list(device.environments.folder.iterdir()) == []
    assert run(device.build(index))["built"]


def test_a_damaged_environment_is_built_again(device: Device, packed: Callable[..., Path]) -> None:
    _, index, _ = device.install(packed())
    part = next(device.environment(index).rglob("base_part.py"))
    part.write_text("FACTOR = 666\n")
    told = run(device.build(index))
    assert told["built"]
    assert inside(device.environment(index), "import greeting; print(greeting.FACTOR)") == "3.0"
    assert run(device.build(index))["built"] is False


def test_a_wheel_with_another_hash_is_refused_and_named(device: Device, packed: Callable[..., Path]) -> None:
    _, index = device.receive(packed())
    target = target_for(index, device.facts)
    assert target is not None
    wheel = device.disk.objects / target.wheels[1].sha256
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(PeerError) as caught:
        run(device.build(index))
    assert caught.value.code == "package.digest_mismatch"
    assert caught.value.data["objects"] == [target.wheels[1].sha256]
    assert not wheel.exists()
    assert device.environments.present() == set()


def test_a_wheel_that_is_none_fails_with_its_name(
    device: Device, index: Path, make_module: MakeModule, tmp_path: Path
) -> None:
    path = wheels.build(index, "odd", "1", {"odd.py": ""})
    folder = make_module(requirements=("odd==1",))
    bundle = client.prepare(folder, package.read_folder(folder))
    assert bundle is not None
    (target,) = bundle.lock.targets
    path.write_bytes(b"PK no zip")
    sha256 = client.sha256_of(path)
    shutil.copyfile(path, device.disk.objects / sha256)
    broken = environments.Target(
        architecture=target.architecture,
        python=target.python,
        glibc=target.glibc,
        wheels=(environments.Wheel(file=path.name, sha256=sha256, size=9, installed=9),),
    )
    lock = environments.Lock(format=1, requirements=("odd==1",), targets=(broken,))
    with pytest.raises(ResourceError, match=r"odd-1-py3-none-any\.whl is no good wheel") as caught:
        run(device.environments.build(lock, broken))
    assert caught.value.code == "install.environment_failed"


def test_a_device_of_another_kind_is_told_so(device: Device, packed: Callable[..., Path]) -> None:
    _, index = device.receive(packed())
    device.facts = type(device.facts)(architecture="riscv64", python="3.11", glibc="2.36")
    with pytest.raises(SkerryError) as caught:
        run(device.build(index))
    assert caught.value.code == "unschedulable.environment"
