"""Score numpy arrays on a device: what ``skerry.Endpoint`` and ``skerry-agent batch`` share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from skerry_modules import oip
from skerry_modules.arrays import Array, from_piece, to_piece
from skerry_modules.channel import Channel, Response
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.regions import Regions

SHARED_FROM: Final = 128 * 1024
"""Smaller tensors go with the request: measured, shared memory wins nothing below."""


class Scored(NamedTuple):
    """Outputs by name, the module version that gave them, and the header ``X-Skerry-Live`` (empty: none)."""

    outputs: dict[str, Array]
    version: str
    live: str


class Scorer:
    """One name at one address.

    Args:
        url: ``http://host:port``, ``https://…`` or ``unix:/path``.
        model: a module or an endpoint.
        version: of the module; None: what the endpoint routes to.
        retries: how often a request that was answered 429 or 503, or found nobody, is sent again before its deadline.
        low: yield to all other requests (``X-Skerry-Priority: low``).
        shared: put large tensors into shared memory; for a Unix socket of an agent of the same user.

    Raises:
        InputError: ``settings.invalid``.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: str | int | None = None,
        *,
        retries: int = 3,
        low: bool = False,
        shared: bool = False,
    ) -> None:
        self.channel = Channel(url)
        if shared and not url.startswith("unix:"):
            raise InputError("settings.invalid", f"cannot share memory with {url}: that needs a unix: address")
        self._regions = Regions() if shared else None
        self._turns = itertools.count(1)
        self.retries = retries
        self._model = model
        self._version = version
        self._bodies = oip.Bodies()
        self._path = oip.path(model, version, "infer")
        self._headers = oip.LOW_PRIORITY if low else b""

    def metadata(self, timeout_s: float) -> oip.Metadata:
        """Raises SkerryError ``module.unknown``, ``scoring.not_ready``, ``resource.agent_unreachable``."""
        path = oip.path(self._model, self._version)
        return oip.metadata(self._call("GET", path, (), b"", time.monotonic() + timeout_s).body)

    def ready(self, timeout_s: float) -> bool:
        """Whether it can score now; an unknown name and a server that is away are simply not ready."""
        path = oip.path(self._model, self._version, "ready")
        try:
            return self.channel.ask("GET", path, deadline=time.monotonic() + timeout_s).status == 200
        except ResourceError:
            return False

    def score(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        timeout_s: float,
        headers: bytes = b"",
    ) -> Scored:
        """Raises SkerryError ``scoring.*``, ``module.unknown``, ``request.*``, ``resource.agent_unreachable``."""
        pieces = {name: to_piece(array) for name, array in inputs.items()}
        region = self._regions.take() if self._regions is not None and _is_large(pieces) else None
        try:
            if region is None:
                head = self._bodies.request(pieces, outputs)
                parts: tuple[oip.Buffer, ...] = (head, *(piece.data for piece in pieces.values()))
            else:
                region.write([piece.data for piece in pieces.values()])
                head = oip.region_request(pieces, outputs, region.name, next(self._turns))
                parts = (head,)
            extra = b"Inference-Header-Content-Length: %d\r\nX-Skerry-Timeout-Ms: %d\r\n%b%b" % (
                len(head),
                max(int(timeout_s * 1000), 1),
                self._headers,
                headers,
            )
            response = self._call("POST", self._path, parts, extra, time.monotonic() + timeout_s)
        except BaseException:
            if region is not None:
                region.close()  # a worker may still read it: the next call must not write there
            raise
        if region is not None and self._regions is not None:
            self._regions.give(region)
        json = response.header("Inference-Header-Content-Length")
        answer = self._bodies.answer(int(json) if json.isdigit() else -1, response.body)
        arrays = {name: from_piece(name, piece) for name, piece in answer.outputs.items()}
        return Scored(arrays, answer.version, response.header("X-Skerry-Live") if self._headers else "")

    def close(self) -> None:
        """Close the connections and the shared memory that are kept."""
        self.channel.close()
        if self._regions is not None:
            self._regions.close()

    def _call(self, method: str, path: str, parts: Sequence[oip.Buffer], headers: bytes, deadline: float) -> Response:
        """One request and what is tried again. The deadline that the server is told is the first attempt's: it bounds
        how long the request may wait there, ours bounds the whole."""
        attempt = 0
        while True:
            try:
                response = self.channel.ask(method, path, parts, headers, deadline=deadline)
            except ResourceError as error:
                remaining = deadline - time.monotonic()
                delay = oip.retry_delay(503, error.code, "", attempt, remaining)
                if delay is None or attempt >= self.retries:
                    raise
            else:
                if response.status == 200:
                    return response
                code, after = response.header("X-Skerry-Code"), response.header("Retry-After")
                delay = oip.retry_delay(response.status, code, after, attempt, deadline - time.monotonic())
                if delay is None or attempt >= self.retries:
                    raise oip.error_of(response.status, code, response.body)
            attempt += 1
            time.sleep(delay)


def _is_large(pieces: Mapping[str, oip.Piece]) -> bool:
    plain = all(piece.datatype != "BYTES" for piece in pieces.values())
    return plain and sum(len(piece.data) for piece in pieces.values()) >= SHARED_FROM
