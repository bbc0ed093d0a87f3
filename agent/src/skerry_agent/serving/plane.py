"""The data plane: HTTP front, module versions in their workers, and the routes between them.

Implements ``ports.DataPlane``. Routes are replaced whole between two requests; a version that is no longer routed
finishes what it was given, so that a swap drops nothing. Everything lives on one event loop.

Does not handle: which versions to load or route (the brain decides).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from skerry_agent import engines
from skerry_agent.ports import GoldenReport, VersionCounters
from skerry_agent.serving import tensors
from skerry_agent.serving.call import Call
from skerry_agent.serving.endpoint import Endpoint
from skerry_agent.serving.frames import Kind
from skerry_agent.serving.front import HttpFront
from skerry_agent.serving.item import Item
from skerry_agent.serving.nursery import Nursery
from skerry_agent.serving.pages import give_back
from skerry_agent.serving.repository import Repository
from skerry_agent.serving.settings import ServingSettings
from skerry_agent.serving.version import Version
from skerry_modules.errors import BugError, InputError, PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Distribution, Route, Sample, Tensor
from skerry_modules.profiles import Limits

if TYPE_CHECKING:
    from skerry_agent.ports import Arrays
    from skerry_agent.serving.grpc_front import GrpcFront

log = logging.getLogger(__name__)

SETTLED_S: Final = 2.0
"""After the last change of routes: giving memory back holds the loop for some milliseconds, so not for each of many."""

_EMPTY = VersionCounters(0, 0, 0, Distribution(), {}, {})


class Plane:
    """See the module's docstring. ``on_exit`` and ``on_sample`` are called on the event loop."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.on_exit: Callable[[str, str, bool], None] = lambda _digest, _reason, _restarting: None
        self.on_sample: Callable[[str, Any], None] = lambda _digest, _sample: None
        self.on_notice: Callable[[str, str, str], None] = lambda _digest, _code, _text: None
        self.repository = Repository(self, control=settings.repository_control)
        self._front = HttpFront(settings, self)
        self._grpc: GrpcFront | None = None
        self._versions: dict[str, Version] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._nurseries: dict[tuple[str, str], Nursery] = {}  # by runtimes and environment
        self._homes: dict[str, tuple[str, str]] = {}  # which of them a version's workers come from
        self._capture_rate = -1.0
        self.starting = False  # what is held here is not known yet
        self._closing = False
        self._settling: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 for none."""
        return self._front.port

    @property
    def grpc_port(self) -> int:
        """The TCP port of gRPC; 0 for none."""
        return self._grpc.port if self._grpc is not None else 0

    @property
    def http(self) -> str:
        """``host:port`` that is listened on; empty for none."""
        host = self.settings.http.rpartition(":")[0]
        return f"{host}:{self.port}" if self.port else ""

    def pids(self) -> list[int]:
        """Zygotes and workers, for what the device's health counts as the workers' memory."""
        found = [pid for nursery in self._nurseries.values() for pid in nursery.pids()]
        return [pid for pid in found if pid]

    async def start(self) -> None:
        """Listen. Raises ResourceError ``resource.port_in_use``."""
        await self._front.start()
        if self.settings.grpc:
            try:
                await self._start_grpc()
            except BaseException:
                await self._front.stop(0)
                raise

    async def _start_grpc(self) -> None:
        try:
            from skerry_agent.serving.grpc_front import GrpcFront
        except ImportError as error:
            raise ResourceError(
                "resource.missing_dependency",
                f"cannot serve gRPC on {self.settings.grpc}: {error}; install skerry[grpc], or empty serving.grpc",
            ) from error
        self._grpc = GrpcFront(self.settings, self)
        await self._grpc.start()

    async def stop(self) -> None:
        """Let answers go out, then end all workers and zygotes."""
        self._closing = True
        if self._settling is not None:
            self._settling.cancel()
        if self._grpc is not None:
            await self._grpc.stop()
        await self._front.stop()
        self._endpoints.clear()
        await asyncio.gather(*(self.unload(digest, drain_s=0.0) for digest in list(self._versions)))
        for nursery in self._nurseries.values():
            nursery.close()
        self._nurseries.clear()

    # -- versions

    async def load(
        self,
        digest: str,
        folder: Path,
        manifest: Manifest,
        version: int,
        limits: Limits,
        *,
        environment: str = "",
    ) -> dict[str, Any]:
        """Start a worker with the model. Loading what is loaded gives its facts again.

        ``environment`` is the folder of the environment that it runs in; empty: the agent's own.

        Returns:
            ``load_ms``, ``memory`` (private bytes of the worker), ``pid``, ``engine`` (its version).

        Raises:
            SkerryError: ``install.load_failed``, ``install.load_timeout``, ``unschedulable.operator``,
                ``unschedulable.engine``; then nothing is left running.
        """
        held = self._versions.get(digest)
        if held is not None and held.ready:
            self.repository.claimed(digest)
            return held.facts
        await self._clear_device(digest, manifest)
        if held is not None and held.suspended:
            held.suspended = False
            return await self._start(held)
        if held is not None:
            await self.unload(digest, drain_s=0.0)
        home = self._homes[digest] = (engines.zygote_of(manifest), environment)
        nursery = self._nurseries.get(home)
        if nursery is None:
            nursery = self._nurseries[home] = Nursery(home[0], self.settings.zygote_timeout_s, environment=environment)
        made = Version(
            digest,
            folder,
            manifest,
            version,
            limits,
            settings=self.settings,
            nursery=nursery,
            events=self,
            capture_rate=self._capture_rate,
        )
        self._versions[digest] = made
        return await self._start(made)

    async def _start(self, version: Version) -> dict[str, Any]:
        try:
            return await version.start()
        except BaseException:
            if self._versions.get(version.digest) is version:
                await self.unload(version.digest, drain_s=0.0)
            raise

    # -- engines whose device holds one version at a time (``ports.Engine.exclusive``)

    async def _clear_device(self, digest: str, manifest: Manifest) -> None:
        """Suspend the engine's other versions: their requests wait until routes change or they are resumed.

        Raises:
            ResourceError: ``board.busy``: another module serves there; two would take the device from each other.
        """
        if not engines.get(manifest.engine).exclusive:
            return
        rivals = [one for one in self._of(manifest.engine) if one.digest != digest and not one.suspended]
        for rival in rivals:
            if rival.manifest.name != manifest.name and self.is_routed(rival):
                raise ResourceError(
                    "board.busy",
                    f"cannot load {manifest.name}: the engine {manifest.engine} holds one module at a time here, and "
                    f"{rival.manifest.name} {rival.number} serves; take that off the device first",
                )
        for rival in rivals:
            await rival.suspend(self.settings.drain_timeout_s)

    @property
    def engines(self) -> frozenset[str]:
        """Engines whose zygotes run in the agent's own environment."""
        return frozenset(engine for engine, environment in self._nurseries if not environment)

    @property
    def versions(self) -> dict[str, Version]:
        """What is loaded, by digest."""
        return self._versions

    def is_routed(self, version: Version) -> bool:
        return any(version in endpoint.versions for endpoint in self._endpoints.values())

    def _restore_device(self, engine: str) -> None:
        """Let the version before take the device again, if no other has it."""
        held = self._of(engine)
        if held and not self._closing and all(version.suspended for version in held):
            held[-1].resume()

    @contextlib.asynccontextmanager
    async def borrowed(self, engine: str) -> AsyncIterator[None]:
        """Take the device of an exclusive engine from its versions for a while: their requests wait meanwhile."""
        held = [version for version in self._of(engine) if not version.suspended]
        for version in held:
            await version.suspend(self.settings.drain_timeout_s)
        try:
            yield
        finally:
            for version in held:
                if not self._closing and version.suspended and version in self._versions.values():
                    version.resume()

    def declared_mb(self) -> int:
        """MB of memory that the loaded versions may take, by their manifests."""
        return sum(version.manifest.resources.memory_mb for version in self._versions.values())

    def _of(self, engine: str) -> list[Version]:
        return [version for version in self._versions.values() if version.manifest.engine == engine]

    async def golden(self, digest: str, folder: Path, manifest: Manifest) -> GoldenReport:
        """Run the golden test in the worker. Cancelling it (a deadline) kills the worker.

        Raises:
            SkerryError: ``install.golden_failed`` with the reason, if it could not be run to its end.
        """
        held = self._held(digest)
        try:
            body = await held.call(Kind.GOLDEN)
        except SkerryError as error:
            if error.code == "install.golden_failed":
                raise
            raise PeerError("install.golden_failed", f"cannot end the golden test: {error.message}") from error
        return msgspec.msgpack.decode(body, type=GoldenReport)

    async def warm(self, digest: str, manifest: Manifest, rounds: int = 3) -> None:
        """Score an example a few times. Raises SkerryError ``install.warm_failed``."""
        try:
            await self._held(digest).call(Kind.WARM, rounds.to_bytes(4, "little"))
        except SkerryError as error:
            if error.code == "install.warm_failed":
                raise
            raise PeerError("install.warm_failed", f"cannot warm up: {error.message}") from error

    def _held(self, digest: str) -> Version:
        held = self._versions.get(digest)
        if held is None:
            raise ResourceError(
                "scoring.not_ready", f"cannot use version {digest[:12]}: it is not loaded; load it first"
            )
        return held

    async def unload(self, digest: str, *, drain_s: float | None = None) -> None:
        """Let requests in flight end (at most ``drain_timeout_s``), then stop the worker; its memory is given back."""
        held = self._versions.get(digest)
        if held is None:
            return
        for name, endpoint in list(self._endpoints.items()):
            left = endpoint.without(held)
            if left is not None:
                self._endpoints[name] = left
            elif held in endpoint.versions:
                del self._endpoints[name]
        await held.stop(self.settings.drain_timeout_s if drain_s is None else drain_s)
        if self._versions.get(digest) is held:
            del self._versions[digest]
            home = self._homes.pop(digest)
            if home not in self._homes.values() and (nursery := self._nurseries.pop(home, None)):
                nursery.close()
        self._restore_device(held.manifest.engine)

    def take_counters(self, digest: str) -> VersionCounters:
        """Counters since the last call; zero for an unknown digest."""
        held = self._versions.get(digest)
        return _EMPTY if held is None else held.take_counters()

    def subject(self, digest: str) -> tuple[str, int]:
        """(module, version) of a digest that is loaded; empty and 0 for another."""
        held = self._versions.get(digest)
        return ("", 0) if held is None else (held.manifest.name, held.number)

    def traffic(self, digest: str) -> tuple[int, int]:
        """(requests, errors) since :meth:`take_counters`, without taking them."""
        held = self._versions.get(digest)
        return (0, 0) if held is None else held.traffic

    def set_capture_rate(self, rate: float) -> None:
        """Capture this share of rows at random, in all versions; −1: as each manifest says."""
        self._capture_rate = rate
        for version in self._versions.values():
            version.set_capture_rate(rate)

    # -- what versions tell

    def worker_exited(self, digest: str, reason: str, restarting: bool) -> None:
        try:
            self.on_exit(digest, reason, restarting)
        except Exception:  # the listener's trouble must not close a worker's socket
            log.exception("cannot tell of a worker's end")

    def sampled(self, digest: str, sample: Sample) -> None:
        try:
            self.on_sample(digest, sample)
        except Exception:
            log.exception("cannot hand a sample over")

    def noticed(self, digest: str, code: str, text: str) -> None:
        try:
            self.on_notice(digest, code, text)
        except Exception:
            log.exception("cannot tell what was noticed")

    # -- routes

    def set_routes(
        self,
        endpoint: str,
        routes: tuple[Route, ...],
        digests: tuple[str, ...],
        shadow: tuple[Route, ...] = (),
        shadow_digests: tuple[str, ...] = (),
    ) -> None:
        """From the next request on, ``endpoint`` goes to these versions; empty: 503. ``shadow`` score copies.

        Raises:
            BugError: ``internal.bug``: a digest is not loaded, or shares do not add up.
        """
        if len(routes) != len(digests) or any(one not in self._versions for one in (*digests, *shadow_digests)):
            raise BugError("internal.bug", f"cannot route {endpoint}: a version is not loaded; load it first")
        live = [
            (route, self._versions[digest]) for route, digest in zip(routes, digests, strict=True) if route.percent > 0
        ]
        if routes and not live:
            raise BugError("internal.bug", f"cannot route {endpoint}: all shares are 0")
        for _, version in live:
            version.admitted = True
            version.copies.drop()
        copies = [(route, self._versions[one]) for route, one in zip(shadow, shadow_digests, strict=True)]
        made = Endpoint(endpoint, live, copies)
        before = self._endpoints.get(endpoint)
        self._endpoints[endpoint] = made
        self._settle()
        for version in before.versions if before is not None else ():
            version.lender.recall()
        for version in before.versions if before is not None and live else ():
            # Its worker is lent away, or died and comes back later if at all: nobody need wait for that any more.
            if not version.ready and not self.is_routed(version):
                version.hand_over(made.choose())

    def forget(self, endpoint: str) -> None:
        self._endpoints.pop(endpoint, None)

    def _settle(self) -> None:
        """Once changes have come to rest, give back the memory that they needed."""
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(SETTLED_S, give_back)

    def is_ready(self) -> bool:
        """Whether every endpoint can score now."""
        ready = (any(version.ready for version in one.versions) for one in self._endpoints.values())
        return not self.starting and all(ready)

    def find(self, model: str, version: str) -> tuple[Version, ...]:
        endpoint = self._endpoints.get(model)
        found: tuple[Version, ...]
        if version:
            found = tuple(
                one
                for one in self._versions.values()
                if str(one.number) == version
                and one.admitted
                and not one.stopping
                and (one.manifest.name == model or (endpoint is not None and one in endpoint.versions))
            )
        else:
            found = endpoint.versions if endpoint is not None else ()
        if found:
            return found
        if self.starting or (endpoint is not None and not (version and endpoint.versions)):
            raise ResourceError("scoring.not_ready", f"cannot use {model}: it has no version ready; ask again soon")
        what = f"version {version} of {model}" if version else model
        here = [f"{model}:{one.number}" for one in self._versions.values() if version and one.manifest.name == model]
        names = ", ".join(here or self._endpoints) or "none"
        raise InputError("module.unknown", f"cannot find {what}: this device serves {names}")

    def follow(self, model: str, item: Item) -> None:
        """Have copies of a request scored by the shadows behind ``model``, once it is answered."""
        endpoint = self._endpoints.get(model)
        if endpoint is not None and endpoint.shadows:
            item.after = endpoint.follow(item)

    def choose(self, model: str, version: str, key: bytes = b"") -> Version:
        """The version for one request. One whose worker is being restarted takes requests: they wait in its queue."""
        if not version:
            endpoint = self._endpoints.get(model)
            if endpoint is not None and endpoint.versions:
                return endpoint.choose(key)
        return self.find(model, version)[0]

    def lone(self, model: str, version: str) -> tuple[Version | None, bool]:
        """The one version that answers every request for this, and whether others follow; None: there is not one."""
        if version:
            return self.find(model, version)[0], False
        endpoint = self._endpoints.get(model)
        if endpoint is None or len(endpoint.versions) != 1:
            return None, False
        return endpoint.versions[0], bool(endpoint.shadows)

    # -- the agent's own requests

    async def infer_tensors(
        self, endpoint: str, inputs: dict[str, Tensor], *, timeout_s: float | None = None
    ) -> dict[str, Tensor]:
        """Score through the same path as HTTP clients do.

        Raises:
            SkerryError: ``scoring.*`` or ``module.unknown``.
        """
        json, body = tensors.request(inputs)
        _, json, body = await self.score(endpoint, "", json, body, timeout_s)
        return tensors.response(json, body)

    async def score(
        self, model: str, version_name: str, json: int, body: bytes, timeout_s: float | None
    ) -> tuple[int, int, bytes]:
        """A body as HTTP clients send it: the version that answered, the length of the JSON part, the answer's body.

        Raises:
            SkerryError: ``scoring.*`` or ``module.unknown``.
        """
        version = self.choose(model, version_name)
        call = Call(model.encode(), json, body)
        if not version_name:
            self.follow(model, call)
        ticket = version.submit(call, timeout_s or version.manifest.resources.request_timeout_s)
        try:
            status, code, json, body = await call.answered
        except asyncio.CancelledError:
            if ticket is not None:
                version.forget(ticket)
            raise
        if status == 200:
            return version.number, json, body
        message = msgspec.json.decode(body)["error"]
        if status < 429:
            raise InputError(code, message)
        if status in (429, 503):
            raise ResourceError(code, message)
        raise PeerError(code, message)

    async def infer(self, endpoint: str, inputs: Arrays, *, timeout_s: float | None = None) -> Arrays:
        """As :meth:`infer_tensors`, in numpy arrays (which the agent process itself does without)."""
        from skerry_agent.serving import arrays

        outputs = await self.infer_tensors(endpoint, arrays.to_tensors(inputs), timeout_s=timeout_s)
        return arrays.from_tensors(outputs)


def run(main: Any) -> Any:
    """``asyncio.run`` on uvloop where it is installed (armv7l has no wheel of it)."""
    with contextlib.suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)
