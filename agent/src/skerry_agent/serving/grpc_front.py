"""The Open Inference Protocol over gRPC, where ``serving.grpc`` names an address: an optional extra, beside HTTP.

A thin server on the same event loop: it turns messages into the bodies that workers read and back. gRPC from Python
costs several times what HTTP does per request; it is here for clients that speak nothing else.

Statuses: INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED (the queue is full: ``retry-after`` in the trailing
metadata), DEADLINE_EXCEEDED, UNAVAILABLE, INTERNAL. The stable code of an error is in ``x-skerry-code``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import grpc
import msgspec

from skerry_agent.engines._host import installed
from skerry_agent.serving import grpc_bodies, oip
from skerry_agent.serving.front import Router
from skerry_agent.serving.grpc_bodies import message
from skerry_agent.serving.settings import ServingSettings
from skerry_modules.errors import InputError, ResourceError, SkerryError

log = logging.getLogger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
_ENVELOPE_BYTES: Final = 64 * 1024
"""What a message may hold besides its tensors."""

_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Scorer(Router, Protocol):
    """What this front asks of the plane."""

    async def score(
        self, model: str, version: str, json: int, body: bytes, timeout_s: float | None
    ) -> tuple[int, int, bytes]: ...


class GrpcFront:
    """Listens between :meth:`start` and :meth:`stop`."""

    def __init__(self, settings: ServingSettings, plane: Scorer) -> None:
        self.port = 0
        self._settings = settings
        self._plane = plane
        self._server: Any = None

    async def start(self) -> None:
        """Listen. Raises ResourceError ``resource.port_in_use``."""
        limit = self._settings.max_body_bytes + _ENVELOPE_BYTES
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=self._settings.max_connections, handlers=[self._handlers()]
        )
        problem = ""
        try:
            self.port = self._server.add_insecure_port(self._settings.grpc)
        except RuntimeError as error:
            problem = str(error)
        if not self.port:
            await self.stop(0)  # else it is closed by the collector, on a loop that may be gone by then
            raise ResourceError(
                "resource.port_in_use",
                f"cannot listen on {self._settings.grpc} for gRPC: {problem or 'it is taken'}; free it, or set "
                "serving.grpc to another",
            )
        await self._server.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    def _handlers(self) -> Any:
        calls: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _guarded(call),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=message(f"{name}Response").SerializeToString,
            )
            for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    # -- calls

    async def _server_live(self, _request: Any, _context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, _request: Any, _context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._plane.is_ready())

    async def _model_ready(self, request: Any, _context: Any) -> Any:
        try:
            ready = any(version.ready for version in self._plane.find(request.name, request.version))
        except SkerryError:
            ready = False
        return message("ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, _request: Any, _context: Any) -> Any:
        return message("ServerMetadataResponse")(name="skerry", version=installed("skerry"), extensions=oip.EXTENSIONS)

    async def _model_metadata(self, request: Any, _context: Any) -> Any:
        versions = self._plane.find(request.name, request.version)
        manifest = versions[0].manifest
        made = message("ModelMetadataResponse")(
            name=request.name,
            versions=[str(number) for number in sorted(version.number for version in versions)],
            platform=oip.PLATFORMS[manifest.engine],
        )
        for into, specs in ((made.inputs, manifest.inputs), (made.outputs, manifest.outputs)):
            for spec in specs:
                into.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return made

    async def _model_infer(self, request: Any, context: Any) -> Any:
        json, body = grpc_bodies.body(request)
        if len(body) > self._settings.max_body_bytes + _ENVELOPE_BYTES:
            limit = self._settings.max_body_bytes
            raise InputError("request.too_large", f"cannot take a body over {limit} bytes; send fewer rows at once")
        times = [one for one in (context.time_remaining(), grpc_bodies.timeout_s(request)) if one is not None]
        number, json, data = await self._plane.score(
            request.model_name, request.model_version, json, body, min(times, default=None)
        )
        return grpc_bodies.answer(request.model_name, number, request.id, json, data)

    async def _index(self, request: Any, _context: Any) -> Any:
        found = self._plane.repository.index(msgspec.json.encode({"ready": request.ready}))
        made = message("RepositoryIndexResponse")()
        for entry in found:
            made.models.add(**entry)
        return made

    async def _load(self, request: Any, _context: Any) -> Any:
        await self._plane.repository.load(request.model_name, "", _parameters(request))
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, _context: Any) -> Any:
        await self._plane.repository.unload(request.model_name, "", _parameters(request))
        return message("RepositoryModelUnloadResponse")()


def _parameters(request: Any) -> bytes:
    """As HTTP sends them; what a file holds is not looked at, since it is refused by its name."""
    found = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, kind) if kind and kind != "bytes_param" else ""
    return msgspec.json.encode({"parameters": found})


def _guarded(call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        try:
            return await call(request, context)
        except SkerryError as error:
            await _abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:
            log.exception("cannot answer a gRPC call")
            text = f"cannot answer: {type(error).__name__}: {error}; please report it"
            await context.abort(grpc.StatusCode.INTERNAL, text, (("x-skerry-code", "internal.bug"),))

    return answer


async def _abort(context: Any, error: SkerryError) -> None:
    status = oip.status_of(error)
    code = _STATUS.get(status, grpc.StatusCode.INTERNAL)
    if error.code == "scoring.deadline":
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    trailing = [("x-skerry-code", error.code)]
    if status in (429, 503):
        trailing.append(("retry-after", "1"))
    await context.abort(code, error.message, tuple(trailing))
