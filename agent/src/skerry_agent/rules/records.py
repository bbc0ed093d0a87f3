"""What the brain remembers over a power cut: one record per module version, a slot per module, the document in force.

Written whole by every ``Save``, before anything that follows from it is done. It holds decisions, never what the disk
can tell by itself (which chunks, objects and folders are there).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skerry_agent.rules.lifecycle import Step
from skerry_modules.messages import DesiredModule
from skerry_modules.trust import Signature

FORMAT: Final = 1


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One module version on this device.

    ``failures`` and ``boots`` count by step since the version was last asked for. ``proven``: it passed its soak here
    and serves at once after a restart. ``good``: it was proven once, so that it is worth reviving when nothing else
    can serve. ``objects``: its files' SHA-256 and sizes, once the index was verified.
    """

    name: str
    version: int
    digest: str
    index_size: int
    signatures: tuple[Signature, ...]
    soak_s: float = 0.0
    attempt: int = 0
    memory_mb: int = 0  # measured; 0: as the manifest declares
    step: Step = Step.WANT
    failures: dict[str, int] = {}
    boots: dict[str, int] = {}
    objects: tuple[tuple[str, int], ...] = ()
    reason: str = ""
    message: str = ""
    since: int = 0
    proven: bool = False
    good: bool = False

    @classmethod
    def of(cls, wanted: DesiredModule) -> Record:
        return cls(
            name=wanted.name,
            version=wanted.version,
            digest=wanted.digest,
            index_size=wanted.index_size,
            signatures=wanted.signatures,
            soak_s=wanted.soak_s,
            attempt=wanted.attempt,
            memory_mb=wanted.memory_mb,
        )

    def adopt(self, wanted: DesiredModule) -> None:
        """Take over what a newer document says of the same version."""
        self.version = wanted.version
        self.index_size = wanted.index_size
        self.signatures = wanted.signatures
        self.soak_s = wanted.soak_s
        self.attempt = wanted.attempt
        self.memory_mb = wanted.memory_mb

    def renew(self) -> None:
        """Forget how it failed: it is tried again from the start."""
        self.failures, self.boots = {}, {}
        self.reason = self.message = ""
        self.step = Step.WANT


class Slot(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The versions of one module, by role. A digest has at most one role; a failed version may have none.

    ``rolling`` is the version that failed in service and keeps the traffic until ``current`` can take it.

    A version that endpoints want beside the module's current one has a slot to itself, named ``module:version`` with
    ``side`` set: there it is current or candidate, and there is nothing to go back to. A digest is in one slot only.
    """

    name: str
    side: bool = False
    current: str = ""
    last_good: str = ""
    candidate: str = ""
    rolling: str = ""
    records: dict[str, Record] = {}

    def role(self, digest: str) -> str:
        """The role's name in reports."""
        if self.side:
            return "side" if digest in (self.current, self.candidate) else ""
        if digest in (self.current, self.rolling):
            return "current"
        if digest == self.candidate:
            return "candidate"
        return "last-good" if digest == self.last_good else ""

    def record(self, digest: str) -> Record | None:
        return self.records.get(digest) if digest else None


class Saved(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Everything. ``desired`` is the signed document as it arrived: it is verified again when it is read back."""

    format: int = FORMAT
    desired: bytes = b""
    slots: dict[str, Slot] = {}


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Saved)


def encode(saved: Saved) -> bytes:
    return _encoder.encode(saved)


def decode(state: bytes | None) -> Saved | None:
    """What was saved; None for nothing, damage, or a newer format (then the device starts as if new: the hub's
    retained document brings everything back, and what the disk holds is not fetched again)."""
    if state is None:
        return None
    try:
        saved: Saved = _decoder.decode(state)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return saved if saved.format == FORMAT else None
