"""The rules of locks: what fits which device, what profiles are resolved for, what a device fetches
and has room for.
"""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rules.bench import Bench
from skerry.environments import targeted
from skerry_modules import environments, profiles
from skerry_modules import manifest as manifests
from skerry_modules.compatibility import DeviceFacts, ModelFacts, memory_mb, obstacles
from skerry_modules.environments import Lock, Target, Wheel
from skerry_modules.errors import InputError
from skerry_modules.index import FileEntry, Index, index_bytes, parse_index, sign_index
from skerry_modules.manifest import Environment, Manifest, Resources, Targets
from skerry_modules.messages import ModulePhase
from skerry_modules.profiles import EngineSupport
from skerry_modules.tensors import TensorSpec
from skerry_simulators.world import modules
from skerry_simulators.world.modules import Behaviour, Module

versions = st.sampled_from(["3.11", "3.12", "3.13"])
glibcs = st.integers(17, 42).map(lambda minor: f"2.{minor}")
architectures = st.sampled_from(["x86_64", "aarch64", "armv7l"])
kinds = st.tuples(architectures, versions, glibcs)


def wheel(name: str, size: int = 10, installed: int = 20) -> Wheel:
    return Wheel(
        file=f"{name}-1-py3-none-any.whl",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        size=size,
        installed=installed,
    )


def lock_of(*found: tuple[str, str, str], wheels: tuple[Wheel, ...] = ()) -> Lock:
    targets = (Target(architecture=a, python=p, glibc=g, wheels=wheels) for a, p, g in found)
    return Lock(format=1, requirements=("a==1",), targets=environments.ordered(targets))


@given(locked=st.sets(kinds, min_size=1), device=kinds, patch=st.integers(0, 20))
def test_a_device_gets_what_runs_on_it_and_the_newest_of_that(
    locked: set[tuple[str, str, str]], device: tuple[str, str, str], patch: int
) -> None:
    architecture, python, glibc = device
    lock = lock_of(*locked)
    assert environments.problems(lock) == []
    chosen = environments.choose(lock, architecture, f"{python}.{patch}", glibc)
    numbers = environments.numbers
    fitting = [kind for kind in locked if kind[:2] == device[:2] and numbers(kind[2]) <= numbers(glibc)]
    if chosen is None:
        assert not fitting
    else:
        assert (chosen.architecture, chosen.python, chosen.glibc) in fitting
        assert numbers(chosen.glibc) == max(numbers(kind[2]) for kind in fitting)


@given(locked=st.lists(kinds, min_size=1, unique=True))
def test_the_key_is_of_the_content_alone(locked: list[tuple[str, str, str]]) -> None:
    lock = lock_of(*locked)
    again = msgspec.json.decode(environments.lock_bytes(lock_of(*reversed(locked))), type=Lock)
    assert environments.key_of(again) == environments.key_of(lock)
    other = msgspec.structs.replace(lock, requirements=("a==2",))
    assert environments.key_of(other) != environments.key_of(lock)


@given(names=st.lists(st.sampled_from(sorted(profiles.shipped())), min_size=1, unique=True))
def test_every_profile_is_covered_by_what_is_resolved_for_it(names: list[str]) -> None:
    chosen = [profiles.get(name) for name in names]
    found = environments.kinds_of(chosen)
    lock = lock_of(*((architecture, python, glibc) for (architecture, python), (glibc, _) in found.items()))
    for profile in chosen:
        python = environments.python_of(profile)
        assert environments.numbers(python) >= environments.AGENT_PYTHON
        assert environments.covers(lock, profile.architecture, python, profile.glibc)
    assert sorted(name for _, of in found.values() for name in of) == sorted(names)


def test_a_profile_without_a_glibc_says_so() -> None:
    bare = msgspec.structs.replace(profiles.get("generic-x86_64"), glibc="")
    with pytest.raises(InputError, match="names no python or no glibc") as caught:
        environments.kinds_of([bare])
    assert caught.value.code == "environment.unresolvable"


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (Targets(profiles=("pynq-z2",)), ["pynq-z2"]),
        (Targets(python=">=3.12"), ["intel-n100"]),
        (Targets(architectures=("armv7l",)), ["pynq-z2"]),
        (Targets(), sorted(name for name, one in profiles.shipped().items() if one.engine("python"))),
    ],
)
def test_a_module_is_resolved_for_what_it_could_run_on(targets: Targets, names: list[str]) -> None:
    manifest = msgspec.structs.replace(parse_index(made().index).manifest, targets=targets)
    assert sorted(profile.name for profile in targeted(manifest)) == names


BAD_LOCKS = {
    "format": msgspec.structs.replace(lock_of(("x86_64", "3.11", "2.36")), format=2),
    "no kinds": lock_of(),
    "twice": msgspec.structs.replace(
        lock_of(("x86_64", "3.11", "2.36")), targets=lock_of(("x86_64", "3.11", "2.36")).targets * 2
    ),
    "a path": lock_of(("x86_64", "3.11", "2.36"), wheels=(msgspec.structs.replace(wheel("a"), file="../a.whl"),)),
    "no digest": lock_of(("x86_64", "3.11", "2.36"), wheels=(msgspec.structs.replace(wheel("a"), sha256="x"),)),
    "a size": lock_of(("x86_64", "3.11", "2.36"), wheels=(msgspec.structs.replace(wheel("a"), size=-1),)),
    "order": lock_of(("x86_64", "3.11", "2.36"), wheels=(wheel("b"), wheel("a"))),
    "python": lock_of(("x86_64", "3", "2.36")),
}


@pytest.mark.parametrize("bad", BAD_LOCKS.values(), ids=BAD_LOCKS)
def test_a_lock_from_elsewhere_is_not_believed(bad: Lock) -> None:
    assert environments.problems(bad)


def test_the_same_file_with_other_content_is_refused() -> None:
    lock = lock_of(("aarch64", "3.11", "2.36"), ("x86_64", "3.11", "2.36"), wheels=(wheel("a"),))
    other = msgspec.structs.replace(lock.targets[1], wheels=(msgspec.structs.replace(wheel("a"), sha256="0" * 64),))
    assert (
        "different content" in environments.problems(msgspec.structs.replace(lock, targets=(lock.targets[0], other)))[0]
    )


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ('requirements = ["numpy"]', "environment.requirements[0]"),
        ('requirements = ["numpy>=1.0"]', "environment.requirements[0]"),
        ('requirements = ["numpy==1.*"]', "environment.requirements[0]"),
        ('requirements = ["--index-url=http://elsewhere"]', "environment.requirements[0]"),
        ('requirements = ["a @ http://elsewhere/a.whl"]', "environment.requirements[0]"),
        ('requirements = ["a==1"]\nname = "A"', "environment.name"),
        ('requirements = ["a==1"]\npython = ["python3"]', "environment.python[0]"),
        ('use = "vision"', "environment.use"),
        ('use = "vision:0"', "environment.use"),
        ('use = "vision:1"\nrequirements = ["a==1"]', "environment.use"),
        ('name = "vision"', "environment.requirements"),
    ],
)
def test_what_an_author_must_not_write(lines: str, field: str) -> None:
    tensor = 'name = "x"\ndatatype = "FP32"\nshape = [1]\n'
    text = f'format = 1\nname = "m"\nengine = "python"\nmodel = "m.py"\n[[inputs]]\n{tensor}[[outputs]]\n{tensor}'
    assert manifests.parse(
        f"{text}[environment]\nrequirements = [\"a[b]==1.0; python_version < '3.13'\"]\n"
    ).environment.given
    with pytest.raises(InputError) as caught:
        manifests.parse(f"{text}[environment]\n{lines}\n")
    assert caught.value.data["field"] == field
    with pytest.raises(InputError) as caught:
        manifests.parse(f'{text.replace("python", "onnx")}[environment]\nrequirements = ["a==1"]\n')
    assert caught.value.data["field"] == "environment"


# -- on a device -------------------------------------------------------------------------------------------------------

ARM = wheel("arm", 300_000, 900_000)
PC = msgspec.structs.replace(wheel("pc", 400_000, 200_000_000), sha256=hashlib.sha256(bytes(400_000)).hexdigest())
LOCK = Lock(
    format=1,
    requirements=("a==1",),
    targets=(
        Target(architecture="aarch64", python="3.11", glibc="2.36", wheels=(ARM,)),
        Target(architecture="x86_64", python="3.11", glibc="2.36", wheels=(PC,)),
    ),
)
FACTS = DeviceFacts(architecture="x86_64", python="3.11.7", glibc="2.41")


def made(memory_mb: int = 64) -> Module:
    """A module with an environment, as bytes."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    script = b"def run(inputs): ..."
    digest = hashlib.sha256(script).hexdigest()
    manifest = Manifest(
        format=1,
        name="scorer",
        engine="python",
        model="main.py",
        inputs=(spec,),
        outputs=(spec,),
        environment=Environment(requirements=("a==1",)),
        resources=Resources(memory_mb=memory_mb),
    )
    files = [FileEntry(environments.FOLDER + one.file, one.sha256, one.size) for one in (ARM, PC)]
    files.append(FileEntry("main.py", digest, len(script)))
    size = sum(entry.size for entry in files)
    data = index_bytes(Index(1, manifest, ModelFacts(size_bytes=size, environment=LOCK), tuple(files)))
    objects = {digest: script, PC.sha256: bytes(PC.size), hashlib.sha256(data).hexdigest(): data}
    return Module(
        "scorer",
        1,
        hashlib.sha256(data).hexdigest(),
        data,
        (sign_index(data, modules.PUBLISHER),),
        objects,
        Behaviour.GOOD,
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    profile = msgspec.structs.replace(modules.PROFILE, engines=(EngineSupport(name="python"),))
    monkeypatch.setattr(modules, "PROFILE", profile)
    made_ready = Bench()
    made_ready.facts = FACTS
    return made_ready


def test_a_device_fetches_the_wheels_of_its_own_kind_only() -> None:
    index = parse_index(made().index)
    assert set(index.objects_with(LOCK.targets[1])) == {PC.sha256, index.files[-1].sha256}
    assert [entry.path for entry in index.without_wheels().files] == ["main.py"]
    assert len(index.objects()) == 3


def test_the_preflight_counts_what_an_environment_takes() -> None:
    index = parse_index(made(memory_mb=500).index)
    profile = msgspec.structs.replace(modules.PROFILE, engines=(EngineSupport(name="python"),))
    assert memory_mb(index.manifest) == 500 + environments.ZYGOTE_MB
    codes = {one.code for one in obstacles(index.manifest, index.facts, profile, FACTS)}
    assert codes == {"unschedulable.memory"}  # 500 MB would fit into 512
    small = msgspec.structs.replace(profile, limits=msgspec.structs.replace(profile.limits, memory_mb=600, disk_mb=200))
    (found,) = obstacles(index.manifest, index.facts, small, FACTS)
    assert found.code == "unschedulable.disk"
    assert found.message == "needs 201 MB of disk, profile leaves 200 MB"  # 0.4 of wheels, 200 built; not the Arm ones


def test_the_brain_asks_for_the_wheels_of_this_device_alone(bench: Bench) -> None:
    module = made()
    bench.add(module)
    bench.desire(1, module.wanted())
    bench.run(60)
    assert "install" in bench.steps(1)  # it held all that it needs
    asked = {entry.split("/")[0] for entry in bench.asked_bytes}
    assert PC.sha256 in asked
    assert ARM.sha256 not in asked


def test_the_brain_asks_for_no_wheel_where_what_it_unpacks_to_has_no_room(bench: Bench) -> None:
    module = made()
    bench.add(module)
    bench.free_disk_mb = 150  # the wheels would fit, what is built from them would not
    bench.desire(1, module.wanted())
    bench.run(600)
    state = bench.reported(1)
    assert (state.phase, state.reason) == (ModulePhase.FAILED, "resource.no_space")
    assert PC.sha256 not in {entry.split("/")[0] for entry in bench.asked_bytes}


def test_the_brain_says_which_devices_an_environment_is_for(bench: Bench) -> None:
    module = made()
    bench.add(module)
    bench.facts = msgspec.structs.replace(FACTS, python="3.12.1")
    bench.desire(1, module.wanted())
    bench.run(60)
    state = bench.reported(1)
    assert (state.phase, state.reason) == (ModulePhase.UNSCHEDULABLE, "unschedulable.environment")
    assert "Python 3.12.1, x86_64, glibc 2.41" in state.message
