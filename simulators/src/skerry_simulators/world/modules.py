"""Small signed modules that exist only as bytes: what the virtual hub registers and virtual devices install.

Made once per process and shared by all runs: signing is the dearest thing that a run does. The keys are the same in
every process, and Ed25519 signatures follow from key and content, so that a seed gives the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import random
from enum import StrEnum
from functools import cache

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_modules import index as indexes
from skerry_modules.chunks import CHUNK_BYTES
from skerry_modules.compatibility import ModelFacts
from skerry_modules.index import FileEntry, Index
from skerry_modules.manifest import Golden, Manifest, Resources
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
    engines=(EngineSupport(name="onnx"),),
    limits=Limits(memory_mb=512, disk_mb=512),
    sources=("the simulator",),
)


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
    UNSIGNED = "unsigned"
    FORGED = "forged"  # signed by a key that no device trusts
    TAMPERED = "tampered"  # the publisher's signature, over other content


BAD = frozenset(Behaviour) - {Behaviour.GOOD}
UNTRUSTED = frozenset((Behaviour.UNSIGNED, Behaviour.FORGED, Behaviour.TAMPERED))


class Module(msgspec.Struct, frozen=True):
    """One version as the hub holds it. ``objects`` are all its objects' bytes, the index among them."""

    name: str
    version: int
    digest: str
    index: bytes
    signatures: tuple[Signature, ...]
    objects: dict[str, bytes]
    behaviour: Behaviour

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
def make(name: str, version: int, behaviour: Behaviour = Behaviour.GOOD, chunks: int = 2) -> Module:
    """A module of two files: ``shared.bin``, the same in every version, and a model of ``chunks`` chunks."""
    rng = random.Random(f"{name} {version} {behaviour} {chunks}")
    shared = random.Random(name).randbytes(900)
    model = rng.randbytes((chunks - 1) * CHUNK_BYTES + 700 + version)
    objects = {indexes.digest_of(data): data for data in (shared, model)}
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    manifest = Manifest(
        format=1,
        name=name,
        engine="onnx",
        model="model.onnx",
        inputs=(spec,),
        outputs=(spec,),
        description=str(behaviour),
        golden=Golden(file="golden.npz"),
        resources=Resources(memory_mb=4096 if behaviour is Behaviour.TOO_LARGE else 64, load_timeout_s=20.0),
    )
    files = (
        FileEntry("golden.npz", indexes.digest_of(shared), len(shared)),
        FileEntry("model.onnx", indexes.digest_of(model), len(model)),
    )
    data = indexes.index_bytes(Index(indexes.FORMAT, manifest, ModelFacts(size_bytes=len(model)), files))
    digest = indexes.digest_of(data)
    return Module(name, version, digest, data, _sign(data, behaviour), {digest: data, **objects}, behaviour)


def _sign(data: bytes, behaviour: Behaviour) -> tuple[Signature, ...]:
    if behaviour is Behaviour.UNSIGNED:
        return ()
    if behaviour is Behaviour.FORGED:
        return (indexes.sign_index(data, STRANGER),)
    if behaviour is Behaviour.TAMPERED:
        return (indexes.sign_index(data + b" ", PUBLISHER),)
    return (indexes.sign_index(data, PUBLISHER),)
