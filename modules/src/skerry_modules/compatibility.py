"""Can this module run on that device class? One pure rule, used by the hub before it sends and by the agent again.

It decides from facts that both sides hold: the manifest, the profile, what the model needs (operators, opset), and,
where the device has said hello, what it really has.
"""

from __future__ import annotations

import re

import msgspec

from skerry_modules import environments, pipeline
from skerry_modules.environments import Lock
from skerry_modules.manifest import PIPELINE, Manifest
from skerry_modules.profiles import EngineSupport, Profile


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from the model file when it was packed. Operators of the default domain have no prefix.

    Of a pipeline: the largest opset and all operators, and by step what its own model file says.
    """

    opset: int = 0
    operators: tuple[str, ...] = ()
    size_bytes: int = 0
    environment: Lock | None = None  # the packages of a python module, locked when it was packed
    steps: dict[str, pipeline.Facts] = {}


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the device itself reported; zero or empty where it has not said."""

    architecture: str = ""
    python: str = ""
    glibc: str = ""
    engines: dict[str, str] = {}  # engine name → version really there
    accelerators: tuple[str, ...] = ()
    memory_mb: int = 0
    free_disk_mb: int = 0
    memory_in_use_mb: int = 0  # by other modules, which stay


def deciding(facts: DeviceFacts) -> DeviceFacts:
    """The facts without what no obstacle depends on: devices that are equal in these need be judged only once."""
    return msgspec.structs.replace(facts, memory_mb=0, free_disk_mb=0)


class Obstacle(msgspec.Struct, frozen=True):
    """Why it cannot run: a code of ``errors.CODES`` under ``unschedulable.``, and a sentence with the numbers."""

    code: str
    message: str


def obstacles(
    manifest: Manifest, model: ModelFacts, profile: Profile, device: DeviceFacts | None = None
) -> list[Obstacle]:
    """Every reason why ``manifest`` cannot run on ``profile``; empty if it can."""
    found: list[Obstacle] = []
    have = device or DeviceFacts()
    targets = manifest.targets
    if targets.profiles and profile.name not in targets.profiles:
        found.append(
            Obstacle("unschedulable.profile", f"targets {', '.join(targets.profiles)}, the device is a {profile.name}")
        )
    architecture = have.architecture or profile.architecture
    if targets.architectures and architecture not in targets.architectures:
        supported = ", ".join(targets.architectures)
        found.append(Obstacle("unschedulable.architecture", f"supports {supported}, the device is {architecture}"))
    python = have.python or profile.python
    if targets.python and python and not python_fits(python, targets.python):
        found.append(Obstacle("unschedulable.python", f"needs Python {targets.python}, the device has {python}"))
    found += _engine_obstacles(manifest, model, profile, have)
    missing = sorted(set(manifest.resources.accelerators) - set(have.accelerators or profile.accelerators))
    if missing:
        found.append(Obstacle("unschedulable.accelerator", f"needs {', '.join(missing)}, which the device lacks"))
    found += _environment_obstacles(model, profile, have)
    leaves = profile.limits.memory_mb - have.memory_in_use_mb
    if memory_mb(manifest) > leaves:
        found.append(Obstacle("unschedulable.memory", f"needs {memory_mb(manifest)} MB, profile leaves {leaves} MB"))
    disk = max(manifest.resources.disk_mb, -(-_disk_bytes(model, profile, have) // 1_000_000))
    if disk > profile.limits.disk_mb:
        found.append(
            Obstacle("unschedulable.disk", f"needs {disk} MB of disk, profile leaves {profile.limits.disk_mb} MB")
        )
    return found


def with_memory(manifest: Manifest, measured_mb: int) -> Manifest:
    """The manifest with the memory that was measured in place of the declared one; 0: nobody measured."""
    if measured_mb <= 0:
        return manifest
    resources = msgspec.structs.replace(manifest.resources, memory_mb=measured_mb)
    return msgspec.structs.replace(manifest, resources=resources)


def memory_mb(manifest: Manifest) -> int:
    """What a running version takes: its worker's limit, and the process that its environment needs beside it."""
    return manifest.resources.memory_mb + (environments.ZYGOTE_MB if manifest.environment.given else 0)


def environment_on(model: ModelFacts, profile: Profile, have: DeviceFacts) -> environments.Target | None:
    """The wheels for a device of this class; None where the module has no environment or none for it."""
    if model.environment is None:
        return None
    return environments.choose(
        model.environment,
        have.architecture or profile.architecture,
        have.python or environments.python_of(profile),
        have.glibc or profile.glibc,
    )


def _environment_obstacles(model: ModelFacts, profile: Profile, have: DeviceFacts) -> list[Obstacle]:
    if model.environment is None or environment_on(model, profile, have) is not None:
        return []
    locked = "; ".join(target.label for target in model.environment.targets)
    device = (
        f"Python {have.python or environments.python_of(profile)}, {have.architecture or profile.architecture}, "
        f"glibc {have.glibc or profile.glibc or 'unknown'}"
    )
    return [
        Obstacle(
            "unschedulable.environment",
            f"its environment was locked for {locked}; the device has {device}: pack it for {profile.name} too",
        )
    ]


def _disk_bytes(model: ModelFacts, profile: Profile, have: DeviceFacts) -> int:
    """The module's files without wheels that are not for this device, and what its environment takes when built."""
    if model.environment is None:
        return model.size_bytes
    wheels = sum(wheel.size for wheel in model.environment.wheels().values())
    chosen = environment_on(model, profile, have)
    return model.size_bytes - wheels + (chosen.size + chosen.installed if chosen else 0)


def _engine_obstacles(manifest: Manifest, model: ModelFacts, profile: Profile, have: DeviceFacts) -> list[Obstacle]:
    if manifest.engine != PIPELINE:
        own = pipeline.Facts(opset=model.opset, operators=model.operators)
        return _engine_obstacle(manifest.engine, own, profile, have, "")
    found = []
    for step in manifest.steps:
        if step.engine:
            facts = model.steps.get(step.name, pipeline.Facts())
            found += _engine_obstacle(step.engine, facts, profile, have, f"step {step.name!r} ")
    return found


def _engine_obstacle(name: str, facts: pipeline.Facts, profile: Profile, have: DeviceFacts, who: str) -> list[Obstacle]:
    engine = profile.engine(name)
    if engine is None:
        names = ", ".join(engine.name for engine in profile.engines) or "none"
        return [Obstacle("unschedulable.engine", f"{who}needs the engine {name}, {profile.name} has {names}")]
    if have.engines and name not in have.engines:
        names = ", ".join(sorted(have.engines)) or "none"
        return [Obstacle("unschedulable.engine", f"{who}needs the engine {name}, the device has installed {names}")]
    return _operator_obstacles(facts, engine, who)


def _operator_obstacles(facts: pipeline.Facts, engine: EngineSupport, who: str) -> list[Obstacle]:
    refused = sorted(operator for operator in facts.operators if _refuses(engine, operator))
    found = []
    if refused:
        text = f"{who}uses {', '.join(refused)}, which {engine.name} does not support there"
        found.append(Obstacle("unschedulable.operator", text))
    if engine.max_opset and facts.opset > engine.max_opset:
        text = f"{who}uses opset {facts.opset}, {engine.name} there reads up to {engine.max_opset}"
        found.append(Obstacle("unschedulable.operator", text))
    return found


def _refuses(engine: EngineSupport, operator: str) -> bool:
    domain, _, _ = operator.rpartition(".")
    return operator in engine.unsupported_operators or (bool(domain) and f"{domain}.*" in engine.unsupported_operators)


def python_fits(version: str, specifier: str) -> bool:
    """A small part of PEP 440, enough for Python versions: comma-separated ``>= <= > < == !=`` on numbers."""
    have = _numbers(version)
    for clause in filter(None, (part.strip() for part in specifier.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<|~=)\s*([0-9.]+)(\.\*)?", clause)
        if not match:
            return False
        want = _numbers(match[2])
        mine = have[: len(want)] + (0,) * (len(want) - len(have))
        full = have + (0,) * (len(want) - len(have))
        fits = {
            ">=": full >= want,
            "<=": mine <= want,
            ">": mine > want,
            "<": full < want,
            "==": mine == want,
            "!=": mine != want,
            "~=": full >= want and have[: len(want) - 1] == want[:-1],
        }[match[1]]
        if not fits:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
