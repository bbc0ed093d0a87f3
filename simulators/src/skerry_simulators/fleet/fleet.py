"""A fleet: devices, their timers and the faults they are given, in one thread."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from skerry_modules.messages import DesiredModule
from skerry_modules.trust import PublicKey
from skerry_simulators.fleet.device import KEEPALIVE_S, LightDevice
from skerry_simulators.fleet.network import Network
from skerry_simulators.fleet.stats import Stats
from skerry_simulators.fleet.store import Store


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the fleet behaves. Times are seconds, shares 0 to 1."""

    telemetry_s: float = 10.0
    health_s: float = 60.0
    connect_s: float = 5.0  # connects are spread over so long
    fail_share: float = 0.0  # of devices, on which a new version fails its golden test
    fail_versions: tuple[str, ...] = ()  # name:version that fails on every device
    cut_s: float = 0.0  # mean time between cut cables of one device; 0: none
    drift_share: float = 0.0  # of devices whose latency grows …
    drift_after_s: float = 0.0  # … from so long after the start


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment."""

    devices: int
    online: int
    waiting: int  # records not acknowledged yet
    acknowledged: int
    serving: dict[str, int]  # name:version -> devices
    candidates: int
    stats: Stats


class Fleet:
    """Run it with :meth:`run` from one thread.

    Args:
        broker: host and port.
        passwords: device id → broker password.
        trusted: keys of the hub; empty: documents are not verified.
    """

    def __init__(
        self,
        broker: tuple[str, int],
        passwords: Mapping[str, str],
        *,
        settings: FleetSettings | None = None,
        trusted: Mapping[str, PublicKey] | None = None,
        profile: str = "generic-x86_64",
        seed: int = 1,
    ) -> None:
        self.settings = settings or FleetSettings()
        self.trusted = dict(trusted or {})
        self.profile, self.seed = profile, seed
        self.stats = Stats()
        self.store = Store()
        self.stopping = False
        self.quiet = False
        """Whether devices make nothing new any more, so that what was made can be acknowledged."""
        Network.raise_limits(len(passwords))
        self.network = Network(*broker)
        self.devices = [LightDevice(self, number, *pair) for number, pair in enumerate(passwords.items())]
        self._dice = random.Random(seed)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._began = time.monotonic()

    # -- what devices ask -------------------------------------------------------------------------------------------

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def golden_fails(self, number: int, wanted: DesiredModule) -> str:
        """Why a version fails on a device, or an empty string."""
        if f"{wanted.name}:{wanted.version}" in self.settings.fail_versions:
            return "outputs differ from those expected (this version fails everywhere)"
        dice = random.Random(f"{self.seed}/{number}/{wanted.digest}")
        return "outputs differ from those expected" if dice.random() < self.settings.fail_share else ""

    def drifts(self, number: int) -> bool:
        if time.monotonic() - self._began < self.settings.drift_after_s:
            return False
        return random.Random(f"{self.seed}/drift/{number}").random() < self.settings.drift_share

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Set everything off; nothing happens before :meth:`run`."""
        settings = self.settings
        for device in self.devices:
            self.after(self._dice.uniform(0, settings.connect_s), device.connect)
            self._every(settings.telemetry_s, device.telemetry)
            self._every(settings.health_s, device.health)
            self._every(KEEPALIVE_S / 2, device.ping)
            self._every(5.0, device.flush)
            if settings.cut_s:
                self._every(settings.cut_s, device.cut, wild=True)

    def run(self, until: Callable[[], bool], *, look_s: float = 0.5) -> None:
        """Run until ``until()``, which is asked every ``look_s``."""
        look = 0.0
        while True:
            now = time.monotonic()
            if now >= look:
                if until():
                    return
                look = now + look_s
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            soonest = self._timers[0][0] if self._timers else now + 0.1
            self.network.poll(max(0.0, min(0.1, look - now, soonest - time.monotonic())))

    def stop(self) -> None:
        """Close all connections, without a goodbye: the hub hears the last wills."""
        self.stopping = True
        self.network.shut()

    def summary(self) -> Summary:
        serving: Counter[str] = Counter()
        candidates = 0
        for device in self.devices:
            for name, module in device.modules.items():
                candidates += module.candidate is not None
                if module.current is not None:
                    serving[f"{name}:{module.current.version}"] += 1
        return Summary(
            devices=len(self.devices),
            online=sum(device.online for device in self.devices),
            waiting=sum(len(device.spool) for device in self.devices),
            acknowledged=sum(device.spool.acknowledged for device in self.devices),
            serving=dict(sorted(serving.items())),
            candidates=candidates,
            stats=self.stats,
        )

    def _every(self, seconds: float, action: Callable[[], None], *, wild: bool = False) -> None:
        """Again and again: in step after a random start, or at random times with that mean."""

        def again() -> None:
            action()
            self.after(self._dice.expovariate(1 / seconds) if wild else seconds, again)

        self.after(self._dice.uniform(0, seconds) if not wild else self._dice.expovariate(1 / seconds), again)
