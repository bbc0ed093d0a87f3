"""A broker and its links, all of which forget: in flight, queued, retained and subscribed things are lost at will."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry_modules import chunks

if TYPE_CHECKING:
    from skerry_simulators.world.world import World


class Network:
    """Clean sessions, at-most-once, any order: less than MQTT promises, so nothing can come to lean on more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._session: dict[str, int] = {}  # connected devices, by the number of their session
        self._sessions = 0
        self._retained: dict[str, bytes] = {}
        self._subscribed: dict[str, set[str]] = {}
        self.cut: set[str] = set()  # partitioned: connected as far as they know
        self.broker_up = True
        self._free_at: dict[str, float] = {}  # when a device's link has carried what it was given
        self._frames: dict[tuple[str, int], bytes] = {}

    # -- links

    def connect(self, device: str) -> bool:
        if not self.broker_up or device in self.cut:
            return False
        self._sessions += 1
        self._session[device] = self._sessions
        return True

    def subscribe_down(self, device: str) -> None:
        """The retained document comes with the subscription."""
        if device in self._retained:
            self._send(device, self._world.deliver_down, device, "desired", self._retained[device])

    def disconnect(self, device: str) -> None:
        self._session.pop(device, None)
        self._free_at.pop(device, None)  # what stood in its queue goes with a clean session
        for subscribers in self._subscribed.values():
            subscribers.discard(device)

    def lose_everything(self) -> list[str]:
        """The broker dies with all it held; returns who was connected."""
        lost = list(self._session)
        self._session.clear()
        self._free_at.clear()
        self._retained.clear()
        self._subscribed.clear()
        self.broker_up = False
        return lost

    # -- messages

    def up(self, device: str, kind: str, payload: bytes) -> None:
        self._send(device, self._world.deliver_up, device, kind, payload)

    def down(self, device: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        if not self.broker_up:
            return
        if retain:
            self._retained[device] = payload
        self._send(device, self._world.deliver_down, device, kind, payload)

    def subscribe(self, device: str, digest: str) -> None:
        if device in self._session and device not in self.cut:
            self._subscribed.setdefault(digest, set()).add(device)

    def unsubscribe(self, device: str, digest: str) -> None:
        self._subscribed.get(digest, set()).discard(device)

    def chunk(self, digest: str, part: int, data: bytes, alone: str = "") -> None:
        """Publish one chunk to all that are subscribed, or to one device alone."""
        key = (digest, part)
        if key not in self._frames:
            piece = data[part * chunks.CHUNK_BYTES : (part + 1) * chunks.CHUNK_BYTES]
            self._frames[key] = chunks.frame(piece)
        faults, rng = self._world.faults, self._world.rng
        for device in [alone] if alone else sorted(self._subscribed.get(digest, ())):
            payload = self._frames[key]
            if faults.flip and rng.random() < faults.flip:
                damaged = bytearray(payload)
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                payload = bytes(damaged)
            now = self._world.clock.now
            self._free_at[device] = free = max(now, self._free_at.get(device, 0.0)) + faults.chunk_s
            self._send(device, self._world.deliver_chunk, device, digest, part, payload, after=free - now)

    def _send(self, device: str, action: object, *arguments: object, after: float = 0.0) -> None:
        faults, rng = self._world.faults, self._world.rng
        session = self._session.get(device)
        if session is None or device in self.cut or (faults.drop and rng.random() < faults.drop):
            return
        copies = 2 if faults.duplicate and rng.random() < faults.duplicate else 1
        for _ in range(copies):
            delay = after + rng.expovariate(1 / faults.delay_s)
            self._world.clock.after(delay, self._arrive, session, action, arguments)

    def _arrive(self, session: int, action: object, arguments: tuple[object, ...]) -> None:
        device = str(arguments[0])
        if self._session.get(device) == session and device not in self.cut:
            action(*arguments)  # type: ignore[operator]
