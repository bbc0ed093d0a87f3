"""Small signed modules that exist only as bytes: what the virtual hub registers and virtual devices install.

Made once per process and shared by all runs: signing is the dearest thing that a run does. The keys are the same in
every process, and Ed25519 signatures follow from key and content, so that a seed gives the same bytes everywhere.

A module may name an environment: a lock with wheels for the virtual device, and others that it must never fetch.
"""

from __future__ import annotations

import hashlib
import random
from enum import StrEnum
from functools import cache

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_modules import environments
from skerry_modules import index as indexes
from skerry_modules.chunks import CHUNK_BYTES
from skerry_modules.compatibility import DeviceFacts, ModelFacts
from skerry_modules.environments import Lock, Target, Wheel
from skerry_modules.index import FileEntry, Index
from skerry_modules.manifest import Environment, Golden, Manifest, Resources
from skerry_modules.messages import DesiredModule
from skerry_modules.profiles import EngineSupport, Limits, Profile
from skerry_modules.tensors import TensorSpec
from skerry_modules.trust import Signature, SigningKey


def _key(name: str) -> SigningKey:
    """A key that anyone can make: good for worlds and nothing else."""
    seed = hashlib.sha256(f"a world's key of its {name}".encode()).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed), name)


PUBLISHER, STRANGER, HUB = _key("publisher"), _key("stranger"), _key("hub")

PROFILE = Profile(
    format=1,
    name="virtual",
    title="A virtual device",
    architecture="x86_64",
    cores=2,
    memory_mb=1024,
    engines=(EngineSupport(name="onnx"), EngineSupport(name="python")),
    limits=Limits(memory_mb=512, disk_mb=512),
    python="3.11",
    glibc="2.36",
    sources=("the simulator",),
)
FACTS = DeviceFacts(architecture=PROFILE.architecture, python=PROFILE.python, glibc=PROFILE.glibc)


class Behaviour(StrEnum):
    """How a model behaves on a device, and what is wrong with its package."""

    GOOD = "good"
    GOLDEN_FAILS = "golden-fails"
    LOAD_FAILS = "load-fails"
    LOAD_CRASHES = "load-crashes"
    LOAD_HANGS = "load-hangs"
    SOAK_CRASHES = "soak-crashes"
    SOAK_ERRORS = "soak-errors"
    WARM_FAILS = "warm-fails"
    TOO_LARGE = "too-large"  # asks for more memory than the profile leaves
    BAD_WHEEL = "bad-wheel"  # an environment that cannot be built
    NOT_LOCKED = "not-locked"  # an environment that was locked for other kinds of devices only
    UNSIGNED = "unsigned"
    FORGED = "forged"  # signed by a key that no device trusts
    TAMPERED = "tampered"  # the publisher's signature, over other content


BAD = frozenset(Behaviour) - {Behaviour.GOOD}
UNTRUSTED = frozenset((Behaviour.UNSIGNED, Behaviour.FORGED, Behaviour.TAMPERED))


OWN_LOCKS = {Behaviour.BAD_WHEEL: "bad", Behaviour.NOT_LOCKED: "elsewhere"}
"""What is wrong with these versions is wrong with their environment."""
SHARED_LOCKS = ("one", "two")
"""Environments that any version may name: they have a wheel in common."""


class Module(msgspec.Struct, frozen=True):
    """One version as the hub holds it. ``objects`` are all its objects' bytes, the index among them.

    ``files``: those of a device's folder, with the index; ``wheels``: those that a virtual device builds its
    environment from; ``environment``: that one's key, empty for none.
    """

    name: str
    version: int
    digest: str
    index: bytes
    signatures: tuple[Signature, ...]
    objects: dict[str, bytes]
    behaviour: Behaviour
    files: frozenset[str] = frozenset()
    wheels: tuple[str, ...] = ()
    environment: str = ""

    @property
    def here(self) -> frozenset[str]:
        """All that a virtual device fetches of it."""
        return self.files | set(self.wheels)

    def wanted(self, *, soak_s: float = 0.0, attempt: int = 0) -> DesiredModule:
        return DesiredModule(
            name=self.name,
            version=self.version,
            digest=self.digest,
            index_size=len(self.index),
            signatures=self.signatures,
            soak_s=soak_s,
            attempt=attempt,
        )


@cache
def lock_of(name: str) -> tuple[Lock, dict[str, bytes]]:
    """A lock with its wheels' bytes: one for all kinds of devices, and one of its own for each kind."""
    wheels: dict[str, bytes] = {}

    def wheel(file: str, size: int) -> Wheel:
        data = random.Random(file).randbytes(size)
        digest = indexes.digest_of(data)
        wheels[digest] = data
        return Wheel(file=file, sha256=digest, size=len(data), installed=3 * len(data))

    def target(architecture: str, glibc: str) -> Target:
        own = f"{name}-1-cp311-cp311-manylinux_{glibc.replace('.', '_')}_{architecture}.whl"
        found = sorted((("base-1-py3-none-any.whl", 600), (own, CHUNK_BYTES + 400)))
        return Target(architecture=architecture, python="3.11", glibc=glibc, wheels=tuple(wheel(*one) for one in found))

    kinds = [("aarch64", "2.31"), ("x86_64", "2.39")]  # another processor, a newer system
    if name != "elsewhere":
        kinds.append(("x86_64", "2.31"))
    made = environments.ordered(target(*kind) for kind in kinds)
    return Lock(format=environments.FORMAT, requirements=(f"{name}==1",), targets=made), wheels


@cache
def make(
    name: str, version: int, behaviour: Behaviour = Behaviour.GOOD, chunks: int = 2, environment: str = ""
) -> Module:
    """A module of two files: ``shared.bin``, the same in every version, and a model of ``chunks`` chunks; with
    ``environment`` it names that one of :func:`lock_of`."""
    environment = OWN_LOCKS.get(behaviour, environment)
    rng = random.Random(f"{name} {version} {behaviour} {chunks}")
    shared = random.Random(name).randbytes(900)
    model = rng.randbytes((chunks - 1) * CHUNK_BYTES + 700 + version)
    objects = {indexes.digest_of(data): data for data in (shared, model)}
    lock, wheels = lock_of(environment) if environment else (None, {})
    files = [
        FileEntry("golden.npz", indexes.digest_of(shared), len(shared)),
        FileEntry("model.onnx", indexes.digest_of(model), len(model)),
    ]
    files += [
        FileEntry(environments.FOLDER + file, one.sha256, one.size)
        for file, one in (lock.wheels() if lock else {}).items()
    ]
    facts = ModelFacts(size_bytes=sum(file.size for file in files), environment=lock)
    ordered = tuple(sorted(files, key=lambda file: file.path))
    data = indexes.index_bytes(Index(indexes.FORMAT, _manifest(name, behaviour, environment), facts, ordered))
    digest = indexes.digest_of(data)
    target = environments.choose(lock, FACTS.architecture, FACTS.python, FACTS.glibc) if lock else None
    return Module(
        name,
        version,
        digest,
        data,
        _sign(data, behaviour),
        {digest: data, **objects, **wheels},
        behaviour,
        files=frozenset((digest, *objects)),
        wheels=tuple(wheel.sha256 for wheel in target.wheels) if target else (),
        environment=environments.key_of(lock) if lock else "",
    )


def _manifest(name: str, behaviour: Behaviour, environment: str) -> Manifest:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    memory_mb = 4096 if behaviour is Behaviour.TOO_LARGE else 64 - (environments.ZYGOTE_MB if environment else 0)
    return Manifest(
        format=1,
        name=name,
        engine="python" if environment else "onnx",
        model="model.onnx",
        inputs=(spec,),
        outputs=(spec,),
        description=str(behaviour),
        golden=Golden(file="golden.npz"),
        resources=Resources(memory_mb=memory_mb, load_timeout_s=20.0),
        environment=Environment(requirements=(f"{environment}==1",)) if environment else Environment(),
    )


def _sign(data: bytes, behaviour: Behaviour) -> tuple[Signature, ...]:
    if behaviour is Behaviour.UNSIGNED:
        return ()
    if behaviour is Behaviour.FORGED:
        return (indexes.sign_index(data, STRANGER),)
    if behaviour is Behaviour.TAMPERED:
        return (indexes.sign_index(data + b" ", PUBLISHER),)
    return (indexes.sign_index(data, PUBLISHER),)
