"""One module version in a process of its own: takes requests from its socket, scores them in order, answers each.

It is forked from a zygote and owns nothing but its end of the socket. Every request is answered before the next is
started, so that the agent knows which one was being scored should the process die; requests that one receive brought
are scored together where ``batching`` has proven that to be the same. What the model prints goes to the
log pipe that stands in for standard output and error, never into the protocol.

When memory runs out (``RLIMIT_DATA``) the process ends with :data:`EXIT_NO_MEMORY` without an answer: a leak is gone
with the process and the agent sends the request again; a request that is too big by itself kills twice and is then
quarantined.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from skerry_agent import engines, golden, memory
from skerry_agent.engines import _host
from skerry_agent.ports import Arrays, LoadedModel
from skerry_agent.serving import batching, frames, guest, oip, orders
from skerry_agent.serving.codec import Codec, Request
from skerry_agent.serving.copies import HEAD
from skerry_agent.serving.exits import EXIT_NO_MEMORY
from skerry_agent.serving.frames import Frame, Kind
from skerry_agent.serving.ledger import Ledger
from skerry_agent.serving.observe import Observer
from skerry_agent.serving.pages import release_files
from skerry_agent.serving.together import Together
from skerry_modules import messages
from skerry_modules.errors import BugError, PeerError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Distribution
from skerry_modules.tensors import DATATYPES

RECEIVE_BYTES: Final = 256 * 1024
_INFER: Final = int(Kind.INFER)
_TRIALS: Final = (Kind.LOAD, Kind.GOLDEN, Kind.WARM)


class Worker:
    """The process's main object; made before the model is known."""

    def __init__(self, sock: socket.socket, side: socket.socket) -> None:
        self._sock = sock
        self._side = side  # brings descriptors
        self._guest: guest.Guest | None = None
        self._pages: Ledger | None = None  # shared with the agent, once there was a guest
        self._send = sock.sendall
        self._model: LoadedModel | None = None
        self._steps: Callable[[], dict[str, Distribution]] | None = None  # of a pipeline
        self._batch_rows = 1
        self._failures: dict[str, str] = {}  # since the last report, by code
        self._report_s = 1.0
        self._reported = time.monotonic()

    def run(self) -> None:
        """Serve until the agent closes the socket."""
        reader = frames.Reader()
        buffer = bytearray(RECEIVE_BYTES)
        view = memoryview(buffer)
        receive = self._sock.recv_into
        while True:
            if self._guest is not None:
                self._host(self._guest)
            try:
                size = receive(buffer)
            except BlockingIOError:
                self._report()
                continue
            if not size:
                return
            self._take(reader.feed(bytes(view[:size])))
            if self._model is not None and time.monotonic() - self._reported >= self._report_s:
                self._report()

    def _host(self, lent: guest.Guest) -> None:
        """Serve a lent connection until the agent says something, or the guest is gone."""
        wait_ms = self._report_s * 1000
        while True:
            said = lent.serve(wait_ms)
            if said is not None:
                if not said:
                    self._give_back(lent)
                return
            if time.monotonic() - self._reported >= self._report_s:
                self._report()

    def _give_back(self, lent: guest.Guest) -> None:
        self._guest = None
        lent.close()  # before the agent hears of it: it may want to close the connection
        self._send(frames.whole(Kind.BACK, lent.number, lent.rest))

    def _take(self, found: Iterable[Frame]) -> None:
        """What one receive brought: requests that came together are scored together where that is proven."""
        waiting: list[Frame] = []
        for frame in found:
            infer = frame.kind == _INFER
            if infer and self._batch_rows > 1 and not frame.flags & frames.ALONE:
                waiting.append(frame)
                continue
            if waiting:
                self._together.infer(waiting)
                waiting = []
            if infer:
                self._infer(frame)
            elif frame.kind == Kind.SHADOW:
                self._shadow(frame)
            else:
                self._control(frame)
        if len(waiting) == 1:
            self._infer(waiting[0])
        elif waiting:
            self._together.infer(waiting)

    # -- requests

    def _infer(self, frame: Frame) -> None:
        request = self._parse(frame)
        if request is not None:
            self._score_one(frame, request)

    def _parse(self, frame: Frame) -> Request | None:
        """None: it was refused, and answered."""
        try:
            return self._codec.parse(frame.body, frame.json)
        except Exception as error:
            self._fail(frame, error)
            return None

    def _score_one(self, frame: Frame, request: Request) -> None:
        name = frame.name.decode()
        try:
            outputs = self._score(request.inputs)
            answer = self._codec.format(name, request.plan, outputs)
        except Exception as error:
            self._fail(frame, error)
            return
        self._send(frames.answer(frame.number, *answer))
        self._note(frame.name, request.inputs, outputs, request.plan.rows)

    def _shadow(self, frame: Frame) -> None:
        """Score a copy of a request, and tell how the outputs compare with the answer that the client was given."""
        from skerry_agent.serving import compare

        size, json = HEAD.unpack_from(frame.body)
        end = HEAD.size + size
        try:
            request = self._codec.parse(frame.body[HEAD.size : end], frame.json)
            outputs = self._score(request.inputs)
            found = compare.compare(self._manifest, compare.read_answer(json, frame.body[end:]), outputs)
        except Exception as error:
            self._fail(frame, error)
            return
        self._send(frames.whole(Kind.ANSWER, frame.number, messages.encode(found), status=200))
        self._note(frame.name, request.inputs, outputs, request.plan.rows)

    def _note(self, name: bytes, inputs: Arrays, outputs: Arrays, rows: int) -> None:
        try:
            for sample in self._observer.note(inputs, outputs, rows, name):
                self._send(frames.whole(Kind.SAMPLE, 0, messages.encode(sample)))
        except MemoryError as error:
            die_of_memory(error)
        except Exception:  # watching must never cost a request
            traceback.print_exc()

    def _fail(self, frame: Frame, error: Exception) -> None:
        """The boundary: whatever breaks is answered, and what is not the caller's fault is ours."""
        if isinstance(error, MemoryError):
            die_of_memory(error)
        if isinstance(error, SkerryError):
            self._refuse(frame.number, error)
            return
        traceback.print_exception(error)
        text = f"cannot score: {type(error).__name__}: {str(error)[:300]}"
        self._refuse(frame.number, BugError("internal.bug", text))

    def _score(self, inputs: Arrays) -> Arrays:
        outputs = self._model.run(inputs)  # type: ignore[union-attr]
        for name in self._outputs:
            if name not in outputs:
                raise PeerError("scoring.failed", f"cannot score: the model gave no output {name!r}")
        return outputs

    def _refuse(self, number: int, error: SkerryError) -> None:
        body = oip.error_body(error.message)
        status = oip.STATUS_OF.get(error.code, 500)
        if status == 500:
            self._failures[error.code] = error.message[:500]
        self._send(frames.whole(Kind.ANSWER, number, body, status=status, name=error.code.encode()))

    # -- orders

    def _control(self, frame: Frame) -> None:
        try:
            result = self._obey(frame)
        except MemoryError as error:
            die_of_memory(error)
        except SkerryError as error:
            self._send(frames.whole(Kind.ANSWER, frame.number, orders.failure(error), status=500))
            return
        except Exception as error:
            traceback.print_exc()
            bug = BugError("internal.bug", f"cannot obey {Kind(frame.kind).name}: {type(error).__name__}: {error}")
            self._send(frames.whole(Kind.ANSWER, frame.number, orders.failure(bug), status=500))
            return
        if self._steps is not None and frame.kind in _TRIALS:
            self._steps()  # forgotten: a trial is nobody's traffic
        if frame.number:
            self._send(frames.whole(Kind.ANSWER, frame.number, msgspec.msgpack.encode(result), status=200))

    def _obey(self, frame: Frame) -> Any:
        match frame.kind:
            case Kind.LOAD:
                return self._load(msgspec.msgpack.decode(frame.body, type=orders.Load))
            case Kind.GOLDEN:
                return golden.run(self._manifest, self._folder, self._score)
            case Kind.WARM:
                return self._warm(int.from_bytes(frame.body, "little"))
            case Kind.CAPTURE:
                return self._capture(frame)
            case Kind.CONFIGURE:
                return self._observer.set_rate(struct.unpack("<d", frame.body)[0])
            case Kind.FLUSH:
                return self._report()
            case Kind.LEND:
                order = msgspec.msgpack.decode(frame.body, type=orders.Lend)
                sock, self._pages = guest.take(self._side, self._pages)
                self._guest = guest.Guest(
                    sock, self._pages, order, self._codec, self._score, self._note, self._send, self._sock.fileno()
                )
                return None
            case Kind.RECALL:
                if self._guest is not None and self._guest.number == frame.number:
                    self._give_back(self._guest)
                return None
            case Kind.MEASURE:
                from skerry_agent.profiling import measure
                from skerry_agent.profiling import orders as profiling

                return measure.run(msgspec.msgpack.decode(frame.body, type=profiling.Measure))
        raise BugError("internal.bug", f"cannot obey a frame of kind {frame.kind}")

    def _load(self, order: orders.Load) -> dict[str, Any]:
        began = time.monotonic()
        self._manifest = order.manifest
        self._folder = Path(order.folder)
        cache = Path(order.cache)
        self._model = engines.get(order.manifest.engine).load(self._folder, order.manifest, cache)
        if order.cache:
            _host.prune(cache, order.cache_entries, order.cache_bytes)
        self._codec = Codec(order.manifest, order.version)
        self._outputs = tuple(spec.name for spec in order.manifest.outputs)
        self._observer = Observer(
            order.manifest, self._folder, digest=order.digest, version=order.version, one_in=order.observe_one_in
        )
        self._observer.set_rate(order.capture_rate)
        self._steps = getattr(self._model, "take_steps", None)
        proof = self._prove(order)
        self._batch_rows = proof.rows
        self._together = Together(
            self._codec, proof.rows, self._score, self._send, self._note, self._score_one, self._infer
        )
        self._report_s = order.report_s
        set_receive_timeout(self._sock, order.report_s)
        release_files()
        return {
            "load_ms": round((time.monotonic() - began) * 1000, 3),
            "memory": memory.private_bytes(),
            "pid": os.getpid(),
            "engine": engines.version_of(order.manifest),
            "batch_rows": proof.rows,
            "notes": self._notes(proof),
        }

    def _prove(self, order: orders.Load) -> batching.Verdict:
        if order.batch_rows >= 0:
            return batching.Verdict(order.batch_rows)
        return batching.prove(order.manifest, self._folder, self._score)

    def _notes(self, proof: batching.Verdict) -> list[tuple[str, str]]:
        """What people should know of this load: (code, text)."""
        found: list[tuple[str, str]] = [*getattr(self._model, "notes", ())]
        if proof.reason:
            found.append(("run.batching_off", f"cannot score requests together: {proof.reason}; each is scored alone"))
        return found

    def _warm(self, rounds: int) -> list[float]:
        """Milliseconds of each round, with the first golden case or zeros."""
        inputs = self._example()
        times = []
        for _ in range(rounds):
            began = time.monotonic()
            try:
                self._score(inputs)
            except SkerryError as error:
                raise PeerError(
                    "install.warm_failed", f"cannot warm {self._manifest.name} up: {error.message}"
                ) from error
            times.append((time.monotonic() - began) * 1000)
        return times

    def _example(self) -> Arrays:
        if self._manifest.golden is not None:
            inputs, _ = golden.load(self._folder / self._manifest.golden.file)
            batch = next(golden.batches(self._manifest, inputs))
            vary = all(spec.shape and spec.shape[0] == -1 for spec in self._manifest.inputs)
            return {name: array[:1] for name, array in batch.items()} if vary else batch
        return {spec.name: _zeros(self._manifest, place) for place, spec in enumerate(self._manifest.inputs)}

    def _capture(self, frame: Frame) -> None:
        """Keep a request that killed two workers: its rows as samples, scored by nobody."""
        request = self._codec.parse(frame.body, frame.json)
        rows = max(request.plan.rows, 1)
        for row in range(rows):
            sample = self._observer.sample(request.inputs, {}, rows, row, "quarantined", 1.0, frame.name.decode())
            if sample is not None:
                self._send(frames.whole(Kind.SAMPLE, 0, messages.encode(sample)))

    def _report(self) -> None:
        self._reported = time.monotonic()
        if self._model is None:
            return
        found = self._observer.take()
        if self._steps is not None and (steps := self._steps()):
            found = found or orders.Observed()
            found.steps = steps
        if self._failures:
            found = found or orders.Observed()
            found.failures, self._failures = self._failures, {}
        if found is not None:
            self._send(frames.whole(Kind.OBSERVED, 0, msgspec.msgpack.encode(found)))


def _zeros(manifest: Manifest, place: int) -> np.ndarray[Any, Any]:
    spec = manifest.inputs[place]
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    if spec.datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        array.fill(b"")
        return array
    return np.zeros(shape, dtype=DATATYPES[spec.datatype])


def set_receive_timeout(sock: socket.socket, timeout_s: float) -> None:
    """A timeout by the kernel, to report when nobody asks; Python's own would cost a system call per receive."""
    seconds, fraction = divmod(timeout_s, 1)
    time_value = (int(seconds), max(int(fraction * 1e6), 1))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", *time_value))
    except OSError:  # 32-bit systems with 64-bit time (Debian 13 on armhf)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", *time_value))


def die_of_memory(error: BaseException) -> NoReturn:
    """End at once: nothing that runs now can rely on memory."""
    os.write(2, f"skerry: out of memory: {str(error)[:200]}\n".encode())
    os._exit(EXIT_NO_MEMORY)


def main(sock: socket.socket, side: socket.socket) -> None:
    Worker(sock, side).run()
