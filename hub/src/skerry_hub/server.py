"""The web server around the hub: says where it listens once it serves, and stops fast.

Open event streams would hold a stopping server until its patience ends, so they are told to end first.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from skerry_hub.app import Hub, create_app
from skerry_hub.settings import Settings

_COLLECT_AFTER: Final = (50_000, 20, 20)


def spare_the_collector() -> None:
    """Keep Python's cycle collector from walking all that the hub imported, again and again, while rows stream by.

    Ingest makes tuples by the thousand that live for milliseconds and hold no cycles; the defaults would collect every
    700 of them. What stands at this moment is left out of every later collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


class Server(uvicorn.Server):
    """uvicorn with our start and stop.

    Args:
        settings: with the port that is really listened on.
        announce: called once requests are answered.
    """

    def __init__(self, settings: Settings, announce: Callable[[Hub], None]) -> None:
        app = create_app(settings)
        self.hub: Hub = app.state.hub
        self._announce = announce
        patience = max(1, round(settings.shutdown_s))
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=patience,
            )
        )
        for name, level in (("uvicorn.error", logging.WARNING), ("uvicorn.access", logging.ERROR)):
            logging.getLogger(name).setLevel(level)
        # A start that we refuse is told in one line by the command; the server's traceback adds nothing.
        logging.getLogger("uvicorn.error").addFilter(lambda _: self.hub.failure is None)

    def serve_until_stopped(self, listener: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM, then stop cleanly.

        Raises:
            SkerryError: why the hub could not start, or had to stop by itself.
        """
        # uvicorn raises the signal again once it has stopped; a clean stop is no failure, so that goes nowhere.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        spare_the_collector()
        try:
            self.run(sockets=[listener])
        except SystemExit:  # how uvicorn says that the start failed
            if self.hub.failure is None:
                raise
        if self.hub.failure:
            raise self.hub.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce(self.hub)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.hub.bus.close()
        await super().shutdown(sockets)
