"""From payloads to rows: what one batch of messages from devices means, before any of it is written.

No I/O but the reading of marks that are not in memory: :class:`Batch` takes messages one by one, judges each by
:mod:`skerry_hub.rules.marks` and gathers rows. A message that cannot be taken becomes a :class:`Refusal`. Where its
envelope is sound but its body is not, its number counts as taken all the same: the device would otherwise send it for
ever, and nothing behind it would come through.

An envelope is decoded with its body left raw, so that bodies are stored as they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from skerry_hub.ingest.lanes import Lane, Lanes, SpoolKey
from skerry_hub.rules.marks import MAX_NUMBER, Verdict, take
from skerry_modules import messages
from skerry_modules.batches import COMMAND, STOP
from skerry_modules.errors import InputError, PeerError
from skerry_modules.manifest import is_name
from skerry_modules.measurement import ModuleProfile, from_builtins
from skerry_modules.messages import FORMAT

MAX_EPOCH_BYTES: Final = 32
_STRANGER: Final = "cannot take messages of a device that is not registered: register it first"
MAX_TEXT: Final = 4096
"""Characters kept of a text that a device wrote for people."""


class TelemetryHead(msgspec.Struct, frozen=True, gc=False):
    """What the table's columns need of a ``messages.Telemetry``. The distributions are stored as they came and read
    when somebody looks: to decode them here would cost more than to insert the row."""

    module: str
    version: int
    endpoint: str
    start: int
    end: int
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    p50_us: float = -1.0
    p99_us: float = -1.0
    role: str = "live"


_open_envelope: Final = msgspec.msgpack.Decoder(messages.Up[msgspec.Raw]).decode
_decode_body: Final = {
    kind: msgspec.msgpack.Decoder(body).decode
    for kind, body in (messages.BODIES | {"telemetry": TelemetryHead}).items()
}
_telemetry_head: Final = _decode_body["telemetry"]
_TELEMETRY_BYTES: Final = messages.MAX_BYTES["telemetry"]
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_json = msgspec.json.Encoder()
_STREAMS: Final = frozenset(int(stream) for stream in messages.Stream)


class Item(NamedTuple):
    """One message as it came: the device is the topic's. Without a ``kind`` it was refused before it came here, and
    its payload is the code, a line's end and the text."""

    device: str
    kind: str
    payload: bytes
    received_at: int


class Refusal(NamedTuple):
    """A message that was not taken as it stood."""

    device: str
    code: str
    message: str
    at: int


class Patch(msgspec.Struct):
    """Columns of one device's row to change; None leaves a column as it is."""

    online: bool | None = None
    boot: str | None = None
    epoch: str | None = None
    agent: str | None = None
    facts: str | None = None
    reported_revision: int | None = None
    presence_at: int | None = None
    seen_at: int | None = None


class Answered(NamedTuple):
    """What a device said of a command; ``profile`` where it ended in one."""

    device: str
    result: messages.Result
    profile: ModuleProfile | None
    at: int


class Batch:
    """Rows of many messages. Feed it by :meth:`add_all`; the marks are whole after :meth:`close`.

    Args:
        lanes: the marks as committed. They are moved here at once: where the rows are not committed in the end, the
            caller forgets them all.
        boot_of: gives the boot that a device last told of, or None for one that is not registered. ``lanes`` must hold
            none of a device that is not.
    """

    def __init__(self, lanes: Lanes, boot_of: Callable[[str], str | None]) -> None:
        self._lanes, self._boot_of = lanes, boot_of
        self.telemetry: list[tuple[Any, ...]] = []
        self.health: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.samples: list[tuple[Any, ...]] = []
        self.results: list[Answered] = []
        self.states: dict[str, tuple[messages.State, int]] = {}
        self.patches: dict[str, Patch] = {}
        self.hellos: dict[str, messages.Hello] = {}
        self.marks: list[tuple[Any, ...]] = []
        self.spools: dict[SpoolKey, int] = {}  # messages, to be acknowledged
        self.seen: dict[str, int] = {}  # devices that were heard of, and when
        self.refusals: list[Refusal] = []
        self.duplicates = 0
        self.gaps = 0
        self.lost = 0
        self._heard: list[Lane] = []
        self._offline: set[str] = set()  # devices whose last will is in this batch
        self._takers: dict[str, Callable[[Item, int, msgspec.Raw, Any], None]] = {
            "telemetry": self._telemetry,
            "health": self._health,
            "event": self._event,
            "sample": self._sample,
            "state": self._state,
            "result": self._result,
        }

    def add_all(self, items: Iterable[Item]) -> None:
        """Take each message, or refuse it; raises nothing that a peer can cause.

        The loop has its own way for telemetry that comes next in a stream that is known, from a device that is well:
        nearly every message of a fleet. It does what :meth:`add` does, without its calls and branches.
        """
        known, offline, append = self._lanes.known, self._offline, self.telemetry.append
        for item in items:
            device, kind, payload, received_at = item
            if kind == "telemetry" and len(payload) <= _TELEMETRY_BYTES:
                try:
                    up = _open_envelope(payload)
                    raw = up.body
                    body = _telemetry_head(raw)
                except _UNREADABLE:
                    self.add(item)
                    continue
                lane, seq = known.get((device, up.epoch, up.stream)), up.seq
                if (
                    lane is not None
                    and seq == lane.mark + 1
                    and 1 <= up.base <= seq <= MAX_NUMBER
                    and up.v == FORMAT
                    and device not in offline
                ):
                    if not lane.heard:
                        self._heard.append(lane)
                    lane.heard += 1
                    lane.mark, lane.at, lane.changed = seq, received_at, True
                    append(_telemetry_row(device, raw, body))
                    continue
            self.add(item)

    def add(self, item: Item) -> None:
        """Take one message, or refuse it; raises nothing that a peer can cause."""
        try:
            taker = self._takers.get(item.kind)
            if taker is not None:
                self._spooled(item, taker)
            elif not item.kind:
                code, _, message = item.payload.decode(errors="replace").partition("\n")
                self._refuse(item, code, message)
            elif self._boot_of(item.device) is None:
                self._refuse(item, "device.unknown", _STRANGER)
            elif item.kind == "hello":
                self._hello(item)
            elif item.kind == "presence":
                self._presence(item)
        except (PeerError, InputError) as error:
            self._refuse(item, error.code, error.message)
        except Exception as error:
            # Not a peer's doing, but one message of one device must not stop the fleet's.
            self._refuse(item, "internal.bug", f"cannot take a {item.kind} message: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Gather the marks to write, the spools to acknowledge, and who was heard of."""
        spools, seen = self.spools, self.seen
        for lane in self._heard:
            spool, at = lane.spool, lane.at
            if lane.changed:
                self.marks.append((*spool, lane.stream, lane.mark, lane.lost, at))
            spools[spool] = spools.get(spool, 0) + lane.heard
            device = spool[0]
            if at > seen.get(device, 0):
                seen[device] = at
            lane.heard, lane.changed = 0, False

    # -- messages in an envelope ------------------------------------------------------------------------------------

    def _spooled(self, item: Item, taker: Callable[[Item, int, msgspec.Raw, Any], None]) -> None:
        try:
            up = _open_envelope(item.payload)
        except _UNREADABLE as error:
            raise PeerError("message.malformed", f"cannot decode a {item.kind} message: {error}") from error
        lane = self._lanes.known.get((item.device, up.epoch, up.stream)) or self._open_lane(item, up)
        if up.v != FORMAT:
            raise _too_new(item.kind, up.v)
        if up.seq == lane.mark + 1 and 1 <= up.base <= up.seq <= MAX_NUMBER:
            lane.mark, taken = up.seq, True  # what the rule says to nearly every message, without the call
        else:
            verdict = self._judge(lane, up)
            if verdict is Verdict.GAP:
                return
            taken = verdict is Verdict.TAKE
        if not lane.heard:
            self._heard.append(lane)
        lane.heard += 1
        lane.at = item.received_at
        if item.device in self._offline:  # it speaks after that last will, which was an older connection's
            self._online_again(item)
        if not taken:
            return
        # The number counts before the body is looked at: a body that is refused is not to come again.
        lane.changed = True
        if len(item.payload) > messages.MAX_BYTES[item.kind]:
            raise _too_large(item)
        try:
            body = _decode_body[item.kind](up.body)
        except _UNREADABLE as error:
            raise PeerError("message.malformed", f"cannot decode a {item.kind} message: {error}") from error
        taker(item, up.at, up.body, body)

    def _judge(self, lane: Lane, up: messages.Up[msgspec.Raw]) -> Verdict:
        """Apply the rule of :mod:`skerry_hub.rules.marks`, and count."""
        verdict, lane.mark, dropped = take(lane.mark, up.seq, up.base)
        if verdict is Verdict.INVALID:
            raise PeerError("message.malformed", "cannot take a message whose number is below its spool's base")
        self.duplicates += verdict is Verdict.DUPLICATE
        self.gaps += verdict is Verdict.GAP
        self.lost += dropped
        lane.lost += dropped
        return verdict

    def _open_lane(self, item: Item, up: messages.Up[msgspec.Raw]) -> Lane:
        if self._boot_of(item.device) is None:
            raise InputError("device.unknown", _STRANGER)
        if up.v != FORMAT:
            raise _too_new(item.kind, up.v)
        if up.stream not in _STREAMS:
            raise PeerError("message.malformed", f"cannot take a message of the stream {up.stream}: there is none")
        _check_epoch(up.epoch)
        return self._lanes.open(item.device, up.epoch, up.stream)

    def _online_again(self, item: Item) -> None:
        self._offline.discard(item.device)
        patch = self._patch(item)
        patch.online, patch.presence_at = True, item.received_at

    def _telemetry(self, item: Item, _at: int, raw: msgspec.Raw, body: TelemetryHead) -> None:
        self.telemetry.append(_telemetry_row(item.device, raw, body))

    def _health(self, item: Item, at: int, raw: msgspec.Raw, body: messages.Health) -> None:
        row = (body.cpu_percent, body.memory_used, body.memory_total, body.disk_used, body.disk_total)
        self.health.append((item.device, at, *row, body.temperature_c, bytes(raw)))

    def _event(self, item: Item, at: int, _raw: msgspec.Raw, body: messages.Event) -> None:
        subject = (body.code[:200], body.message[:MAX_TEXT], body.module, body.version)
        self._add_event(item, at, body.severity, subject, body.data)

    def _result(self, item: Item, at: int, _raw: msgspec.Raw, body: messages.Result) -> None:
        if body.progress < 1:
            self.results.append(Answered(item.device, body, None, item.received_at))
            return
        profile = None
        if body.name == "profile" and body.ok:
            try:
                profile = from_builtins(body.data)
            except PeerError as error:
                body = messages.Result(
                    command=body.command, name=body.name, ok=False, code=error.code, message=error.message
                )
        self.results.append(Answered(item.device, body, profile, item.received_at))
        if body.ok and body.name in (COMMAND, STOP):
            return  # a job has many parts: it is the job that tells
        severity = messages.Severity.INFO if body.ok else messages.Severity.ERROR
        # A profile is long and has a table of its own.
        data = {"command": body.command, "ok": body.ok, **({} if profile else body.data)}
        subject = ((body.code or "command.done")[:200], body.message[:MAX_TEXT], "", 0)
        self._add_event(item, at, severity, subject, data)

    def _sample(self, item: Item, _at: int, raw: msgspec.Raw, body: messages.Sample) -> None:
        if not body.id or len(body.id) > 200 or not math.isfinite(body.probability):
            raise PeerError("message.malformed", "cannot take a sample without an id of its own and a probability")
        if not is_name(body.module) or body.version < 0:  # they become a path in the object store
            raise PeerError("message.malformed", f"cannot take a sample of {body.module[:80]!r}: no module's name")
        row = (body.id, item.device, body.module, body.version, body.digest, body.at, item.received_at)
        self.samples.append((*row, body.reason[:MAX_TEXT], body.probability, bytes(raw), ""))

    def _state(self, item: Item, _at: int, _raw: msgspec.Raw, body: messages.State) -> None:
        _same_device(item, body.device)
        self.states[item.device] = (body, item.received_at)  # a snapshot: the last one of the batch stands
        patch = self._patch(item)
        patch.reported_revision = body.revision

    # -- messages without one -----------------------------------------------------------------------------------------

    def _hello(self, item: Item) -> None:
        hello: messages.Hello = messages.decode("hello", item.payload)
        _same_device(item, hello.device)
        _check_epoch(hello.epoch)
        patch = self._patch(item)
        self._offline.discard(item.device)
        patch.online, patch.presence_at = True, item.received_at
        patch.boot, patch.epoch, patch.agent = hello.boot, hello.epoch.hex(), hello.agent
        patch.facts = _json.encode(hello.facts).decode()
        patch.reported_revision = hello.revision
        self.hellos[item.device] = hello
        self.spools.setdefault((item.device, hello.epoch.hex()), 0)

    def _presence(self, item: Item) -> None:
        if not item.payload:  # a retained message that somebody cleared
            return
        said: messages.Presence = messages.decode("presence", item.payload)
        patch = self._patch(item)
        boot = patch.boot or self._boot_of(item.device)
        if not said.online and said.boot and boot and said.boot != boot:
            return  # the last will of a boot before this one
        patch.online, patch.presence_at = said.online, item.received_at
        if not said.online:
            self._offline.add(item.device)
        if said.online and said.boot:
            patch.boot = said.boot

    # -- parts --------------------------------------------------------------------------------------------------------

    def _patch(self, item: Item) -> Patch:
        patch = self.patches.get(item.device)
        if patch is None:
            patch = self.patches[item.device] = Patch()
        patch.seen_at = item.received_at
        return patch

    def _add_event(
        self, item: Item, at: int, severity: messages.Severity, subject: tuple[str, str, str, int], data: dict[str, Any]
    ) -> None:
        text = _json.encode(data).decode()
        self.events.append((item.device, at, item.received_at, severity.value, *subject, text))

    def _refuse(self, item: Item, code: str, message: str) -> None:
        self.refusals.append(Refusal(item.device, code, message, item.received_at))


def _telemetry_row(device: str, raw: msgspec.Raw, body: TelemetryHead) -> tuple[Any, ...]:
    return (
        device,
        body.module,
        body.version,
        body.endpoint,
        body.start,
        body.end,
        body.requests,
        body.errors,
        body.rejected,
        body.p50_us,
        body.p99_us,
        bytes(raw),
        body.role,
    )


def _too_new(kind: str, version: int) -> PeerError:
    return PeerError("message.unsupported_version", f"cannot read a {kind} message of format {version}: update the hub")


def _too_large(item: Item) -> PeerError:
    size, limit = len(item.payload), messages.MAX_BYTES[item.kind]
    return PeerError("message.oversized", f"cannot take a {item.kind} message of {size} bytes: the limit is {limit}")


def _check_epoch(epoch: bytes) -> None:
    if not 0 < len(epoch) <= MAX_EPOCH_BYTES:
        raise PeerError("message.malformed", f"cannot take a spool's epoch of {len(epoch)} bytes: use 1 to 32")


def _same_device(item: Item, said: str) -> None:
    if said != item.device:
        raise PeerError(
            "message.wrong_device",
            f"cannot take a {item.kind} message of {said[:80]!r} on the topic of {item.device!r}",
        )
