"""Every limit of the data plane: a name, a unit, a default."""

from __future__ import annotations

import msgspec


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the data plane serves. Times end in ``_s``, sizes in ``_bytes``.

    Attributes:
        http: ``host:port`` of the scoring address; port 0 takes a free one; empty: none.
        socket: path of a Unix socket that serves the same; empty: none.
        grpc: ``host:port`` that serves the protocol over gRPC, which the extra ``grpc`` brings; empty: none.
        cache: folder for models compiled on this device; empty: compile nothing.
        max_body_bytes: a larger request body is answered 413.
        max_header_bytes: a longer request head is answered 431.
        max_buffered_bytes: bodies on their way in, of all connections together; more are answered 429.
        max_connections: further connections are answered 503.
        max_pipelined: requests of one connection that may wait for the one before them.
        header_timeout_s: a request's head must be whole within this time of its first byte (slow loris).
        body_timeout_s: and its body within this time of its head.
        idle_timeout_s: a connection that asks nothing for so long is closed.
        write_timeout_s: a client that takes no bytes of its answer for so long is cut off.
        sweep_s: how often these times are checked.
        queue_requests: requests of one version that may wait for its worker; more are answered 429.
        queue_bytes: and their bytes.
        low_requests: requests of low priority that may wait for one version; more are answered 429.
        low_wait_s: a request of low priority waits until the version has nothing else to do, or for so long.
        lend_after: requests alike in a row from a client alone, before the worker serves its connection; 0: never.
        awake_s: after a batch was answered, the next answers are waited for awake for so long; 0: asleep.
        window: requests on their way to one worker at once.
        window_bytes: and their bytes (at least one request always goes).
        shadow_requests: copies of requests that one version may have waiting or under way in shadow; more are dropped.
        shadow_bytes: and their bytes, with those of the answers that they are compared with.
        drain_timeout_s: how long an unload waits for requests in flight.
        kill_limit: a request that was being scored when so many workers died is quarantined.
        respawn_delay_s: pause before a worker that scored nothing is started again; doubled each time.
        respawn_delay_max_s: the longest such pause.
        report_s: how often a worker hands over what it observed.
        observe_one_in: one request in so many goes into the input and output distributions.
        log_lines: lines of a model's own output that are kept for the reason of its end.
        zygote_timeout_s: how long an engine may take to import.
        cache_entries: compiled models that are kept.
        cache_bytes: and their bytes together; the one used last stays in any case.
        repository_control: whether clients may load and unload versions that the device holds and has verified.
    """

    http: str = "127.0.0.1:8090"
    socket: str = ""
    grpc: str = ""
    cache: str = ""
    max_body_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 16 * 1024
    max_buffered_bytes: int = 64 * 1024 * 1024
    max_connections: int = 512
    max_pipelined: int = 32
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 60.0
    sweep_s: float = 1.0
    queue_requests: int = 256
    queue_bytes: int = 64 * 1024 * 1024
    low_requests: int = 16
    low_wait_s: float = 0.25
    lend_after: int = 32
    awake_s: float = 0.00015
    window: int = 16
    window_bytes: int = 1024 * 1024
    shadow_requests: int = 32
    shadow_bytes: int = 16 * 1024 * 1024
    drain_timeout_s: float = 30.0
    kill_limit: int = 2
    respawn_delay_s: float = 0.02
    respawn_delay_max_s: float = 5.0
    report_s: float = 1.0
    observe_one_in: int = 4
    log_lines: int = 50
    zygote_timeout_s: float = 60.0
    cache_entries: int = 16
    cache_bytes: int = 1024 * 1024 * 1024
    repository_control: bool = True
